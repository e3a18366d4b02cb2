# Every way to memory is counted, also those that the library's code takes by itself.
if(TARGET plan_test_allocation)
  target_link_options(plan_test_allocation PRIVATE ${weft_count_allocations})
endif()
# Ranks of these are real processes.
target_sources(plan_test_messages PRIVATE $<TARGET_OBJECTS:weft_test_ranks>)
