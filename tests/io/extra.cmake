# The gzip tests write their own damaged files.
if(ZLIB_FOUND)
  foreach(source ${room_tests})
    get_filename_component(file ${source} NAME_WE)
    target_compile_definitions(io_${file} PRIVATE WEFT_TEST_ZLIB)
  endforeach()
endif()

# Calls that test_sink makes fail.
target_link_options(io_test_sink PRIVATE -Wl,--wrap=pwrite,--wrap=fsync,--wrap=rename,--wrap=ftruncate,--wrap=fchmod)
