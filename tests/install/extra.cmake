# An installed copy, used from outside.
find_program(WEFT_CXX NAMES c++ g++ clang++)
if(NOT WEFT_CXX)
  set(WEFT_CXX "")
endif()
add_test(NAME install_outside COMMAND bash ${CMAKE_CURRENT_LIST_DIR}/run.sh ${PROJECT_BINARY_DIR} ${CMAKE_COMMAND}
                                      ${CMAKE_C_COMPILER} ${WEFT_CXX})
set_tests_properties(install_outside PROPERTIES LABELS install TIMEOUT 300)
