# The gzip tests write their own damaged files.
if(ZLIB_FOUND)
  foreach(source ${room_tests})
    get_filename_component(file ${source} NAME_WE)
    target_compile_definitions(io_${file} PRIVATE WEFT_TEST_ZLIB)
  endforeach()
  if(TARGET weft_test_room_io)
    target_compile_definitions(weft_test_room_io PRIVATE WEFT_TEST_ZLIB)
  endif()
endif()

# Calls that test_sink makes fail.
target_link_options(io_test_sink PRIVATE -Wl,--wrap=pwrite,--wrap=fsync,--wrap=rename,--wrap=ftruncate,--wrap=fchmod)

# safetensors files against the Python package; skipped where that cannot be had.
find_package(Python3 QUIET COMPONENTS Interpreter)
add_executable(io_safetensors_copy io/interop/safetensors_copy.c)
target_link_libraries(io_safetensors_copy PRIVATE weft::weft weft_flags)
if(TARGET fit_custom)
  set(io_sample $<TARGET_FILE:fit_custom>)
endif()
if(Python3_FOUND)
  add_test(NAME io_interop_safetensors
           COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/io/interop_safetensors.py
                   ${CMAKE_CURRENT_BINARY_DIR}/venv-safetensors $<TARGET_FILE:io_safetensors_copy> ${io_sample})
  set_tests_properties(io_interop_safetensors PROPERTIES LABELS io TIMEOUT 240 SKIP_RETURN_CODE 77)
endif()
