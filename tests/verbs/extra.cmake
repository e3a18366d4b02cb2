# The ranks of these tests are made by the wires' harness, and their collectives by that of the collectives.
foreach(source ${room_tests})
  get_filename_component(file ${source} NAME_WE)
  target_sources(verbs_${file} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/transport/conformance.c
                                       ${CMAKE_CURRENT_SOURCE_DIR}/transport/conformance_cases.c
                                       ${CMAKE_CURRENT_SOURCE_DIR}/collective/cases.c)
endforeach()
