# Ranks of these are real processes.
target_sources(parallel_test_cut PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/transport/ranks.c)
