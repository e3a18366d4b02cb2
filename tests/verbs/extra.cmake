# The wire on a soft RDMA device, in guests that guest.sh boots where there is QEMU. By themselves: emulated guests that share
# cores with other tests lose packets to time as well as to the loss that is asked for.
if(NOT WEFT_SANITIZE AND TARGET weftrun AND TARGET weft-bench AND TARGET train_clicks AND TARGET train_gpt)
  add_executable(verbs_guest_ranks ${CMAKE_CURRENT_SOURCE_DIR}/verbs/guest/ranks.c)
  target_include_directories(verbs_guest_ranks PRIVATE ${PROJECT_SOURCE_DIR}/src)
  target_compile_definitions(verbs_guest_ranks PRIVATE _GNU_SOURCE)
  target_link_libraries(verbs_guest_ranks PRIVATE weft::weft weft_flags)
  add_test(NAME verbs_guest COMMAND bash ${CMAKE_CURRENT_SOURCE_DIR}/verbs/guest.sh ${CMAKE_RUNTIME_OUTPUT_DIRECTORY} ${CMAKE_BINARY_DIR}/guest)
  set_tests_properties(verbs_guest PROPERTIES LABELS "verbs;guest" TIMEOUT 800 PROCESSORS 2 RUN_SERIAL ON SKIP_RETURN_CODE 77)
endif()
