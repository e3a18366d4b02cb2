# The shell scripts, without what takes long in them.
add_test(NAME scripts_lib COMMAND bash ${CMAKE_CURRENT_LIST_DIR}/run.sh ${PROJECT_SOURCE_DIR})
set_tests_properties(scripts_lib PROPERTIES LABELS scripts TIMEOUT 60)
add_test(NAME scripts_sanitizer COMMAND bash ${CMAKE_CURRENT_LIST_DIR}/sanitizer.sh ${PROJECT_SOURCE_DIR})
set_tests_properties(scripts_sanitizer PROPERTIES LABELS scripts TIMEOUT 60)
# The whole quick start.
add_test(NAME scripts_quickstart_nightly COMMAND bash ${CMAKE_CURRENT_LIST_DIR}/quickstart_nightly.sh ${PROJECT_SOURCE_DIR})
set_tests_properties(scripts_quickstart_nightly PROPERTIES LABELS "scripts;nightly" TIMEOUT 1800 RUN_SERIAL TRUE)
