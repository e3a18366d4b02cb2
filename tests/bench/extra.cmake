# Every benchmark at toy size.
if(TARGET weft-bench AND NOT WEFT_SANITIZE)
  add_test(NAME bench_smoke COMMAND bash ${CMAKE_CURRENT_LIST_DIR}/smoke.sh ${CMAKE_RUNTIME_OUTPUT_DIRECTORY})
  set_tests_properties(bench_smoke PROPERTIES LABELS bench TIMEOUT 240)
endif()
