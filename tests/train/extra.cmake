# Programs that the tests of this room start under weftrun.
file(GLOB train_programs CONFIGURE_DEPENDS ${CMAKE_CURRENT_LIST_DIR}/programs/*.c)
foreach(source ${train_programs})
  get_filename_component(name ${source} NAME_WE)
  add_executable(train_program_${name} ${source})
  target_compile_definitions(train_program_${name} PRIVATE _GNU_SOURCE)
  target_link_libraries(train_program_${name} PRIVATE weft::weft weft_flags)
endforeach()
