# The CPU device's fast kernels: each file of src/core/cpu/kernels/ is compiled once per instruction set, with
# WEFTI_ISA naming the set; the sources put it at the end of every symbol, and the CPU device picks at run time.
# Whoever calls them may see WEFTI_ISA_DISPATCH, which says that the x86-64 variants exist.
#
# -fno-trapping-math lets loops with a select become SIMD. -ffp-contract=off (flags.cmake) stays: every variant must
# round as written.
file(GLOB weft_kernel_sources CONFIGURE_DEPENDS src/core/cpu/kernels/*.c)
set(weft_isas baseline)
set(weft_isa_flags_baseline "")
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$" AND CMAKE_SIZEOF_VOID_P EQUAL 8)
  list(APPEND weft_isas avx2 avx512)
  set(weft_isa_flags_avx2 -mavx2 -mfma -mf16c)
  set(weft_isa_flags_avx512 ${weft_isa_flags_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl
                            -mprefer-vector-width=512)
  target_compile_definitions(weft PRIVATE WEFTI_ISA_DISPATCH)
endif()

set(weft_kernel_optimisation -O3)
if(WEFT_SANITIZE)
  set(weft_kernel_optimisation -O1) # unrolled and instrumented loops take minutes to compile
  # GCC 12 keeps locals for the use-after-return check at places that its own aligned 64-byte stores cannot take.
  if(WEFT_SANITIZE MATCHES "address" AND CMAKE_C_COMPILER_ID STREQUAL "GNU")
    list(APPEND weft_kernel_optimisation --param=asan-use-after-return=0)
  endif()
endif()

if(weft_kernel_sources)
  foreach(isa ${weft_isas})
    add_library(weft_kernels_${isa} OBJECT ${weft_kernel_sources})
    target_include_directories(weft_kernels_${isa} PRIVATE include src)
    target_compile_definitions(weft_kernels_${isa} PRIVATE _GNU_SOURCE WEFTI_ISA=${isa} ${weft_private_definitions})
    target_compile_options(weft_kernels_${isa} PRIVATE ${weft_kernel_optimisation} -fno-trapping-math ${weft_isa_flags_${isa}})
    target_link_libraries(weft_kernels_${isa} PRIVATE weft_flags)
    target_sources(weft PRIVATE $<TARGET_OBJECTS:weft_kernels_${isa}>)
  endforeach()
endif()
