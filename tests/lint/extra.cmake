# The plan of the house, held by lint.py. Without Python there is nothing that can hold it.
find_program(WEFT_PYTHON NAMES python3)
if(WEFT_PYTHON)
  find_program(WEFT_CXX NAMES c++ g++ clang++)
  set(cxx "")
  if(WEFT_CXX)
    set(cxx --cxx ${WEFT_CXX})
  endif()
  foreach(check layers headers symbols sizes words self)
    add_test(NAME lint_${check} COMMAND ${WEFT_PYTHON} ${CMAKE_CURRENT_LIST_DIR}/lint.py ${check}
                                        --source ${PROJECT_SOURCE_DIR} --library $<TARGET_FILE:weft>
                                        --cc ${CMAKE_C_COMPILER} ${cxx} --nm ${CMAKE_NM})
    set_tests_properties(lint_${check} PROPERTIES LABELS lint TIMEOUT 300)
  endforeach()
else()
  message(STATUS "weft: Python: none, the checks of tests/lint are left out (Debian: python3)")
endif()
