# The shell scripts, without what takes long in them.
add_test(NAME scripts_lib COMMAND bash ${CMAKE_CURRENT_LIST_DIR}/run.sh ${PROJECT_SOURCE_DIR})
set_tests_properties(scripts_lib PROPERTIES LABELS scripts TIMEOUT 60)
