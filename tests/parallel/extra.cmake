# Ranks of these are real processes.
target_sources(parallel_test_cut PRIVATE $<TARGET_OBJECTS:weft_test_ranks>)
if(TARGET parallel_test_partitioned)
  target_sources(parallel_test_partitioned PRIVATE $<TARGET_OBJECTS:weft_test_ranks>)
endif()
