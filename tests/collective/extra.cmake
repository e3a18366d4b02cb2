# The ranks of these tests are made by the wires' harness.
file(GLOB wire_harness CONFIGURE_DEPENDS transport/conformance*.c)
foreach(source ${room_tests})
  get_filename_component(file ${source} NAME_WE)
  target_sources(collective_${file} PRIVATE ${wire_harness} ${CMAKE_CURRENT_SOURCE_DIR}/transport/ranks.c)
  set_tests_properties(collective_${file} PROPERTIES TIMEOUT 300)
endforeach()

if(TARGET weft-bench AND NOT WEFT_SANITIZE AND TARGET collective_test_tuning)
  target_compile_definitions(collective_test_tuning PRIVATE WEFT_TEST_BENCH)
  add_dependencies(collective_test_tuning weft-bench)
endif()
