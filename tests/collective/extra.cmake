if(TARGET weft-bench AND NOT WEFT_SANITIZE AND TARGET collective_test_tuning)
  target_compile_definitions(collective_test_tuning PRIVATE WEFT_TEST_BENCH)
  add_dependencies(collective_test_tuning weft-bench)
endif()
