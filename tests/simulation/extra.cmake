# The same collectives under SimGrid, where that is installed.
if(NOT WEFT_SANITIZE)
  add_test(NAME simulation_simgrid
    COMMAND ${CMAKE_COMMAND} -E env SMALL=1 WEFT_BUILD_DIR=${PROJECT_BINARY_DIR} bash ${PROJECT_SOURCE_DIR}/bench/simgrid/run.sh ${CMAKE_CURRENT_BINARY_DIR}/simgrid 8 16)
  set_tests_properties(simulation_simgrid PROPERTIES LABELS simulation TIMEOUT 180 SKIP_RETURN_CODE 77)
endif()
