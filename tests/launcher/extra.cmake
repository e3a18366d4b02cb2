# The launcher is tried from outside: each case of run.sh is a test of its own.
if(TARGET weftrun)
  file(STRINGS ${CMAKE_CURRENT_LIST_DIR}/run.sh launcher_cases REGEX "^case_[a-z0-9_]+\\(\\)")
  foreach(line ${launcher_cases})
    string(REGEX REPLACE "^case_([a-z0-9_]+).*" "\\1" case "${line}")
    add_test(NAME launcher_${case} COMMAND bash ${CMAKE_CURRENT_LIST_DIR}/run.sh $<TARGET_FILE:weftrun> ${case})
    set_tests_properties(launcher_${case} PROPERTIES LABELS launcher TIMEOUT 180 SKIP_RETURN_CODE 77)
  endforeach()
endif()
