# Included by extra.cmake where everything is there.
set(here ${CMAKE_CURRENT_LIST_DIR})
set(weft_shim_flags -std=c++17 -Wall -Wextra -ffp-contract=off -fno-math-errno -fno-strict-aliasing)
if(WEFT_WERROR)
  list(APPEND weft_shim_flags -Werror)
endif()
# Kernels are many templates; what they compute takes seconds, what -O2 takes to compile them is more.
set(weft_shim_kernel_flags ${weft_shim_flags} -O1 -g1 -fno-exceptions -fno-rtti -Wno-unused-function -Wno-unknown-pragmas
                           -Wno-missing-field-initializers
                           -include ${here}/shim.h)
if(NOT WEFT_SANITIZE)
  # Calls races.cpp at every access; the sanitizer's own library is not linked.
  list(APPEND weft_shim_kernel_flags -fsanitize=thread)
elseif(WEFT_SANITIZE MATCHES "address")
  # Fibers that are given up never come back to the frames that the use-after-return check keeps for them.
  list(APPEND weft_shim_kernel_flags --param=asan-use-after-return=0)
endif()

function(weft_cuda_host_target name)
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src ${PROJECT_SOURCE_DIR}/tests)
  target_include_directories(${name} SYSTEM PRIVATE ${WEFT_CUDA_HEADERS})
  target_compile_definitions(${name} PRIVATE _GNU_SOURCE WEFT_SOURCE_DIR="${PROJECT_SOURCE_DIR}" WEFT_BIN_DIR="${CMAKE_RUNTIME_OUTPUT_DIRECTORY}")
endfunction()

# The device, compiled for the host.
file(GLOB cuda_kernels CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/cuda/*.cu)
file(GLOB cuda_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/cuda/*.c)
# What is written against a header that is not there stays away, as it does on a GPU.
foreach(pair "dnn;cudnn.h" "nccl;nccl.h" "blas;cublasLt.h")
  list(GET pair 0 part)
  list(GET pair 1 header)
  if(NOT EXISTS ${WEFT_CUDA_HEADERS}/${header})
    list(FILTER cuda_sources EXCLUDE REGEX "/src/cuda/${part}[^/]*$")
  endif()
endforeach()
set_source_files_properties(${cuda_kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
add_library(weft_cuda_host_kernels OBJECT ${cuda_kernels})
target_compile_options(weft_cuda_host_kernels PRIVATE ${weft_shim_kernel_flags})
weft_cuda_host_target(weft_cuda_host_kernels)
# With the composition root as it is in a build with CUDA, which this one may not be.
add_library(weft_cuda_host_device OBJECT ${cuda_sources} ${PROJECT_SOURCE_DIR}/src/runtime.c)
target_link_libraries(weft_cuda_host_device PRIVATE weft_flags)
target_compile_definitions(weft_cuda_host_device PRIVATE ${weft_private_definitions})
if(NOT WEFT_HAVE_CUDA)
  target_compile_definitions(weft_cuda_host_device PRIVATE WEFTI_HAVE_CUDA)
endif()
if(EXISTS ${WEFT_CUDA_HEADERS}/nccl.h)
  target_compile_definitions(weft_cuda_host_device PRIVATE WEFT_HAVE_NCCL)
endif()
weft_cuda_host_target(weft_cuda_host_device)

# The stand-ins.
add_library(weft_cuda_host_runtime OBJECT ${here}/block.cpp ${here}/races.cpp ${here}/memory.cpp ${here}/stream.cpp ${here}/capture.cpp
                                          ${here}/runtime.cpp ${here}/driver.cpp ${here}/library.cpp)
target_compile_options(weft_cuda_host_runtime PRIVATE ${weft_shim_flags} -O2 -g1)
weft_cuda_host_target(weft_cuda_host_runtime)

target_compile_definitions(weft_cuda_host_runtime PRIVATE WEFT_CUDA_HOST_LIBRARIES="${PROJECT_BINARY_DIR}/cuda_host")

# Libraries as the device loads them, by their names, from a folder of their own (WEFT_CUDA_LIBRARIES).
function(weft_stand_in_library name suffix header source)
  if(EXISTS ${WEFT_CUDA_HEADERS}/${header})
    add_library(${name}_stand_in SHARED ${source})
    target_compile_options(${name}_stand_in PRIVATE ${weft_shim_flags} -O2 -g1)
    weft_cuda_host_target(${name}_stand_in)
    set_target_properties(${name}_stand_in PROPERTIES OUTPUT_NAME ${name} SUFFIX ${suffix} NO_SONAME TRUE
                                                      LIBRARY_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR}/cuda_host)
    set(weft_stand_in_libraries ${weft_stand_in_libraries} ${name}_stand_in PARENT_SCOPE)
  endif()
endfunction()
weft_stand_in_library(cublasLt .so.13 cublasLt.h ${here}/lib_cublaslt.cpp)
weft_stand_in_library(nccl .so.2 nccl.h ${here}/lib_nccl.cpp)
weft_stand_in_library(nvrtc .so.13 nvrtc.h ${here}/lib_nvrtc.cpp)
target_compile_definitions(nvrtc_stand_in PRIVATE WEFT_HOST_COMPILER="${CMAKE_CXX_COMPILER}" WEFT_HOST_CUDA="${WEFT_CUDA_HEADERS}")

# All of it before libweft.a, which may hold the real device: what is defined here is then not looked for there.
add_library(weft_cuda_host INTERFACE)
target_sources(weft_cuda_host INTERFACE $<TARGET_OBJECTS:weft_cuda_host_kernels> $<TARGET_OBJECTS:weft_cuda_host_device>
                                        $<TARGET_OBJECTS:weft_cuda_host_runtime>)
target_link_libraries(weft_cuda_host INTERFACE weft::weft weft_flags)

function(weft_cuda_host_program name)
  weft_cuda_host_target(${name})
  set_target_properties(${name} PROPERTIES LINKER_LANGUAGE CXX ENABLE_EXPORTS TRUE) # the libraries call the runtime in here
  add_dependencies(${name} ${weft_stand_in_libraries})
  target_link_libraries(${name} PRIVATE weft_cuda_host ${weft_test_framework})
  add_test(NAME ${name} COMMAND ${name})
  set_tests_properties(${name} PROPERTIES LABELS cuda_host TIMEOUT 600)
endfunction()

set(suite $<TARGET_OBJECTS:weft_test_device>)
add_executable(cuda_host_conformance ${here}/check_conformance.c ${here}/thrice.c ${suite})
weft_cuda_host_program(cuda_host_conformance)
# What plans put together for it.
add_executable(cuda_host_epilogue ${here}/check_epilogue.c ${here}/../plan/support.c)
weft_cuda_host_program(cuda_host_epilogue)
# What the host's compiler makes at run time knows nothing of sanitizers.
if(NOT WEFT_SANITIZE)
  add_executable(cuda_host_fused ${here}/check_fused.c ${suite})
  weft_cuda_host_program(cuda_host_fused)
endif()

set_source_files_properties(${here}/planted.cu PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-x;c++")
add_library(weft_cuda_host_planted OBJECT ${here}/planted.cu)
target_compile_options(weft_cuda_host_planted PRIVATE ${weft_shim_kernel_flags})
weft_cuda_host_target(weft_cuda_host_planted)
add_executable(cuda_host_shim ${here}/check_shim.c ${here}/check_runtime.c $<TARGET_OBJECTS:weft_cuda_host_planted>)
weft_cuda_host_program(cuda_host_shim)
if(EXISTS ${WEFT_CUDA_HEADERS}/nvtx3/nvToolsExt.h)
  add_library(nvtx_stand_in SHARED ${here}/lib_nvtx.cpp)
  target_compile_options(nvtx_stand_in PRIVATE ${weft_shim_flags} -O2 -g1)
  weft_cuda_host_target(nvtx_stand_in)
  add_executable(cuda_host_marks ${here}/check_marks.c)
  weft_cuda_host_program(cuda_host_marks)
  add_dependencies(cuda_host_marks nvtx_stand_in)
  target_compile_definitions(cuda_host_marks PRIVATE WEFT_NVTX_STAND_IN="$<TARGET_FILE:nvtx_stand_in>")
endif()

# The real cuDNN, where it is installed, planning for a GPU that is not there.
if(EXISTS ${WEFT_CUDA_HEADERS}/cudnn.h)
  find_library(WEFT_CUDNN_LIBRARY NAMES libcudnn.so.9 HINTS ${CUDAToolkit_LIBRARY_DIR} ${WEFT_CUDA_HEADERS}/../lib ${WEFT_CUDA_HEADERS}/../lib64)
  mark_as_advanced(WEFT_CUDNN_LIBRARY)
  add_executable(cuda_host_dnn ${here}/check_dnn.c ${suite})
  weft_cuda_host_program(cuda_host_dnn)
  if(WEFT_CUDNN_LIBRARY)
    get_filename_component(folder ${WEFT_CUDNN_LIBRARY} DIRECTORY)
    set_tests_properties(cuda_host_dnn PROPERTIES ENVIRONMENT WEFT_CUDA_LIBRARIES=${folder})
  endif()
endif()

# The GPU's tests of the device itself.
add_executable(cuda_host_device ${here}/../cuda/test_device.c)
weft_cuda_host_program(cuda_host_device)
target_compile_definitions(cuda_host_device PRIVATE WEFT_ON_STAND_INS)
add_test(NAME cuda_host_device_lazily COMMAND cuda_host_device)
set_tests_properties(cuda_host_device_lazily PROPERTIES LABELS cuda_host TIMEOUT 600 ENVIRONMENT WEFT_CUDA_HOST_LAZY=1)

add_executable(cuda_host_bad_input ${here}/check_bad_input.c)
weft_cuda_host_program(cuda_host_bad_input)
set_tests_properties(cuda_host_bad_input PROPERTIES ENVIRONMENT "WEFT_CUDA_NVRTC=0")
add_executable(cuda_host_fp8 ${here}/../cuda/test_fp8.c)
weft_cuda_host_program(cuda_host_fp8)
target_compile_definitions(cuda_host_fp8 PRIVATE WEFT_ON_STAND_INS)
set_tests_properties(cuda_host_fp8 PROPERTIES ENVIRONMENT "WEFT_CUDA_NVRTC=0")

# Training as processes: the programs that tests/cuda runs on a GPU, in a folder of their own under the names that it knows.
set(weft_cuda_host_bin ${PROJECT_BINARY_DIR}/cuda_host/bin)
foreach(program parity run compress)
  add_executable(cuda_host_program_${program} ${here}/../train/programs/${program}.c $<TARGET_OBJECTS:weft_test_far>)
  weft_cuda_host_target(cuda_host_program_${program})
  set_target_properties(cuda_host_program_${program} PROPERTIES LINKER_LANGUAGE CXX ENABLE_EXPORTS TRUE RUNTIME_OUTPUT_DIRECTORY ${weft_cuda_host_bin}
                                                                OUTPUT_NAME train_program_${program})
  target_link_libraries(cuda_host_program_${program} PRIVATE weft_cuda_host)
  add_dependencies(cuda_host_program_${program} ${weft_stand_in_libraries})
endforeach()
add_executable(cuda_host_train ${here}/../cuda/test_train.c ${here}/../train/run.c $<TARGET_OBJECTS:weft_test_common>)
weft_cuda_host_program(cuda_host_train)
if(TARGET weftrun)
  add_custom_command(TARGET cuda_host_train POST_BUILD COMMAND ${CMAKE_COMMAND} -E copy $<TARGET_FILE:weftrun> ${weft_cuda_host_bin}/)
  add_dependencies(cuda_host_train weftrun)
endif()
add_dependencies(cuda_host_train cuda_host_program_parity cuda_host_program_run cuda_host_program_compress)
# The fused programs' compiler has a test of its own, and takes long here.
set_tests_properties(cuda_host_train PROPERTIES ENVIRONMENT "WEFT_TEST_BIN=${weft_cuda_host_bin};WEFT_CUDA_NVRTC=0")

# Images with channels last.
add_executable(cuda_host_layout ${here}/check_layout.c)
weft_cuda_host_program(cuda_host_layout)
if(WEFT_SANITIZE)
  target_compile_definitions(cuda_host_layout PRIVATE WEFT_SANITIZED)
endif()

# Small calls that are done together.
add_executable(cuda_host_joined ${here}/check_joined.c)
weft_cuda_host_program(cuda_host_joined)
if(WEFT_SANITIZE)
  target_compile_definitions(cuda_host_joined PRIVATE WEFT_SANITIZED)
endif()

# A CPU and a GPU in one graph.
add_executable(cuda_host_mixed ${here}/check_mixed.c $<TARGET_OBJECTS:weft_test_ranks>)
weft_cuda_host_program(cuda_host_mixed)
set_tests_properties(cuda_host_mixed PROPERTIES ENVIRONMENT "WEFT_CUDA_NVRTC=0")

# The device's memory and wires: the verbs wire on a fabric of this process, whose ranks are threads.
if(WEFT_HAVE_VERBS)
  add_executable(cuda_host_wires ${here}/check_wires.c ${here}/../verbs/fake_verbs.c ${here}/../verbs/fake_fabric.c $<TARGET_OBJECTS:weft_test_ranks>)
  weft_cuda_host_program(cuda_host_wires)
  set_tests_properties(cuda_host_wires PROPERTIES ENVIRONMENT "WEFT_CUDA_NVRTC=0")
endif()

# The lines of figures of bench/peers/gpu.py at toy size: that they can be run, not what they say.
if(WEFT_SAMPLES)
  foreach(sample train_gpt train_images)
    add_executable(cuda_host_sample_${sample} ${PROJECT_SOURCE_DIR}/samples/${sample}.c)
    weft_cuda_host_target(cuda_host_sample_${sample})
    set_target_properties(cuda_host_sample_${sample} PROPERTIES LINKER_LANGUAGE CXX ENABLE_EXPORTS TRUE RUNTIME_OUTPUT_DIRECTORY ${weft_cuda_host_bin}
                                                                OUTPUT_NAME ${sample})
    target_link_libraries(cuda_host_sample_${sample} PRIVATE weft_cuda_host)
    add_dependencies(cuda_host_sample_${sample} ${weft_stand_in_libraries})
  endforeach()
  add_test(NAME cuda_host_lines COMMAND python3 ${PROJECT_SOURCE_DIR}/bench/peers/gpu.py --toy --bin ${weft_cuda_host_bin}
                                        --results ${PROJECT_BINARY_DIR}/cuda_host/lines gpt2 gpt2-1 mlp)
  set_tests_properties(cuda_host_lines PROPERTIES LABELS cuda_host TIMEOUT 300 ENVIRONMENT "WEFT_DEVICE=cuda;WEFT_CUDA_NVRTC=0;WEFT_THREADS=1")
endif()

# NCCL on its stand-in, with ranks as processes: the oracle is that of the collectives.
if(EXISTS ${WEFT_CUDA_HEADERS}/nccl.h AND NOT WEFT_SANITIZE MATCHES "thread")
  set(nccl_harness $<TARGET_OBJECTS:weft_test_collectives> $<TARGET_OBJECTS:weft_test_ranks> $<TARGET_OBJECTS:weft_test_wires>)
  add_executable(cuda_host_nccl ${here}/check_nccl.c ${here}/check_nccl_faults.c ${nccl_harness})
  weft_cuda_host_program(cuda_host_nccl)
  add_executable(cuda_host_nccl_nodes ${here}/check_nccl_nodes.c ${nccl_harness})
  weft_cuda_host_program(cuda_host_nccl_nodes)
  add_executable(cuda_host_nccl_train ${here}/check_nccl_train.c ${here}/../train/run.c $<TARGET_OBJECTS:weft_test_common>)
  weft_cuda_host_program(cuda_host_nccl_train)
  add_dependencies(cuda_host_nccl_train cuda_host_program_parity cuda_host_train)
  add_custom_command(TARGET cuda_host_nccl_train POST_BUILD COMMAND ${CMAKE_COMMAND} -E copy ${here}/../cuda/hosted.sh ${weft_cuda_host_bin}/)
  set_tests_properties(cuda_host_nccl_train PROPERTIES ENVIRONMENT "WEFT_TEST_BIN=${weft_cuda_host_bin};WEFT_CUDA_NVRTC=0")
  # The benchmark of it, at toy sizes: it verifies each before it is timed.
  file(GLOB bench_sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/bench/*.c)
  add_executable(cuda_host_bench ${bench_sources})
  weft_cuda_host_target(cuda_host_bench)
  set_target_properties(cuda_host_bench PROPERTIES LINKER_LANGUAGE CXX ENABLE_EXPORTS TRUE RUNTIME_OUTPUT_DIRECTORY ${weft_cuda_host_bin} OUTPUT_NAME weft-bench)
  target_link_libraries(cuda_host_bench PRIVATE weft_cuda_host)
  add_dependencies(cuda_host_bench ${weft_stand_in_libraries})
  add_test(NAME cuda_host_bench COMMAND cuda_host_bench allreduce --device cuda --share-gpu --sizes 4:256K --windows 2 --seconds 0.005)
  set_tests_properties(cuda_host_bench PROPERTIES LABELS cuda_host TIMEOUT 120 PASS_REGULAR_EXPRESSION "256K +65536 +f32 +sum +nccl .* 0\n.*256K +65536 +f32 +sum +wires .* 0\n")
  add_test(NAME cuda_host_bench_nodes COMMAND cuda_host_bench allreduce --device cuda --share-gpu --by nodes:2 --ranks 4 --sizes 4:256K --windows 2
                                              --seconds 0.005)
  set_tests_properties(cuda_host_bench_nodes PROPERTIES LABELS cuda_host TIMEOUT 120
    PASS_REGULAR_EXPRESSION "inside 2 nodes of 2 ranks, wire shm across.* 4 +1 +f32 +sum +nodes .* 0\n.*256K +65536 +f32 +sum +nodes .* 0\n")
  # One host is one node, and there NCCL has all ranks: no figure of nodes is made of that.
  add_test(NAME cuda_host_bench_one_node COMMAND cuda_host_bench allreduce --device cuda --share-gpu --by nodes --sizes 4:8 --windows 2 --seconds 0.005)
  set_tests_properties(cuda_host_bench_one_node PROPERTIES LABELS cuda_host TIMEOUT 120
    PASS_REGULAR_EXPRESSION "by nodes: unmeasured: all ranks are on one node" FAIL_REGULAR_EXPRESSION "sum +nodes ")
  # Those of kernels, at toy size: each checks what it times.
  function(weft_cuda_host_bench_of what nvrtc)
    add_test(NAME cuda_host_bench_${what} COMMAND cuda_host_bench cuda-${what} --toy --seconds 0.0005 ${ARGN})
    set_tests_properties(cuda_host_bench_${what} PROPERTIES LABELS cuda_host TIMEOUT 300 ENVIRONMENT "WEFT_CUDA_NVRTC=${nvrtc}"
                                                            PASS_REGULAR_EXPRESSION " GB/s [^\n]* %\n" FAIL_REGULAR_EXPRESSION "WRONG|error|unmeasured")
  endfunction()
  weft_cuda_host_bench_of(adamw 0)
  weft_cuda_host_bench_of(norm 0)
  if(NOT WEFT_SANITIZE)
    weft_cuda_host_bench_of(residual 1 --cases 2)
  endif()
endif()

# Blocks are fibers and streams are threads: the frames that the use-after-return check keeps for each took most of these tests' time.
if(WEFT_SANITIZE MATCHES "address")
  get_property(all_tests DIRECTORY PROPERTY TESTS)
  list(FILTER all_tests INCLUDE REGEX "^cuda_host_")
  set_property(TEST ${all_tests} PROPERTY ENVIRONMENT_MODIFICATION ASAN_OPTIONS=string_append::detect_stack_use_after_return=0)
endif()
