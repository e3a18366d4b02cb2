# The ranks of these tests are made by the wires' harness.
foreach(source ${room_tests})
  get_filename_component(file ${source} NAME_WE)
  target_sources(collective_${file} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/transport/conformance.c
                                            ${CMAKE_CURRENT_SOURCE_DIR}/transport/conformance_cases.c
                                            ${CMAKE_CURRENT_SOURCE_DIR}/transport/ranks.c)
  set_tests_properties(collective_${file} PROPERTIES TIMEOUT 300)
endforeach()
