# Ranks of these are real processes.
target_sources(parallel_test_cut PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/transport/ranks.c)
if(TARGET parallel_test_partitioned)
  target_sources(parallel_test_partitioned PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/transport/ranks.c)
endif()
