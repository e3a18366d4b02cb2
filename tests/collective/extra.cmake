# The ranks of these tests are made by the wires' harness.
file(GLOB wire_harness CONFIGURE_DEPENDS transport/conformance*.c)
foreach(source ${room_tests})
  get_filename_component(file ${source} NAME_WE)
  target_sources(collective_${file} PRIVATE ${wire_harness} ${CMAKE_CURRENT_SOURCE_DIR}/transport/ranks.c)
  set_tests_properties(collective_${file} PROPERTIES TIMEOUT 300)
endforeach()
