# The functions of the fast kernels as they are with fused multiply-add.
if(TARGET weft_kernels_avx2 AND NOT WEFT_SANITIZE)
  add_executable(cpu_test_math_fused cpu/test_math.c)
  target_include_directories(cpu_test_math_fused PRIVATE ${PROJECT_SOURCE_DIR}/src)
  target_compile_options(cpu_test_math_fused PRIVATE -mavx2 -mfma)
  target_link_libraries(cpu_test_math_fused PRIVATE weft::weft weft_flags ${weft_test_framework})
  add_test(NAME cpu_test_math_fused COMMAND cpu_test_math_fused)
  set_tests_properties(cpu_test_math_fused PROPERTIES LABELS cpu TIMEOUT 300)
endif()

# A machine without AVX never meets it: the baseline's kernels are compiled without.
find_program(WEFT_OBJDUMP objdump)
if(WEFT_OBJDUMP AND TARGET weft_kernels_avx2)
  add_test(NAME cpu_baseline_holds_no_avx
           COMMAND sh -c "! \"$0\" -d \"$@\" | grep -m 1 -E '%[yz]mm|%k[0-7]|[[:space:]]v[a-z]'" ${WEFT_OBJDUMP}
                   $<TARGET_OBJECTS:weft_kernels_baseline>
           COMMAND_EXPAND_LISTS)
  set_tests_properties(cpu_baseline_holds_no_avx PROPERTIES LABELS cpu TIMEOUT 120)
endif()
