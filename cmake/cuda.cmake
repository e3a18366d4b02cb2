# The CUDA device, src/cuda: its .c files by the C compiler, its .cu files by nvcc. Included where the toolkit was found
# (cmake/dependencies.cmake).
#
# nvcc is called by rules of our own and not as a language of CMake's: a program that links libweft.a is then linked by
# plain `cc`, here and outside, and need not know that there is CUDA in it. The kernels use C++ without its library, exceptions
# or type information, so that nothing of it is to be linked.
#
# CMAKE_CUDA_ARCHITECTURES says for which GPUs, as CMake reads it (80-real, 90a-real, 90-virtual; a bare number is both). While
# developing, one makes builds quicker: -DCMAKE_CUDA_ARCHITECTURES=90a-real.
set(weft_cuda_architectures ${CMAKE_CUDA_ARCHITECTURES})
if(NOT weft_cuda_architectures)
  set(weft_cuda_architectures 80-real 90a-real 90-virtual)
endif()
set(weft_cuda_flags -std=c++17 -O3 -lineinfo -fmad=false -Xcompiler=-fPIC,-fno-exceptions,-fno-rtti,-fno-threadsafe-statics
                    -Xcompiler=-ffp-contract=off,-fno-strict-aliasing,-Wall,-Wextra,-Wno-unused-function,-Wno-missing-field-initializers)
foreach(architecture ${weft_cuda_architectures})
  string(REGEX MATCH "^([0-9]+[af]?)(-real|-virtual)?$" fits "${architecture}")
  if(NOT fits)
    message(FATAL_ERROR "CMAKE_CUDA_ARCHITECTURES: '${architecture}' is none of 80, 80-real, 90a-real, 90-virtual and their like")
  endif()
  set(number ${CMAKE_MATCH_1})
  if(NOT CMAKE_MATCH_2 STREQUAL "-virtual")
    list(APPEND weft_cuda_flags -gencode=arch=compute_${number},code=sm_${number})
  endif()
  if(NOT CMAKE_MATCH_2 STREQUAL "-real")
    list(APPEND weft_cuda_flags -gencode=arch=compute_${number},code=compute_${number})
  endif()
endforeach()
if(WEFT_WERROR)
  list(APPEND weft_cuda_flags -Werror=all-warnings -Xcompiler=-Werror)
endif()

file(GLOB weft_cuda_sources CONFIGURE_DEPENDS src/cuda/*.c)
if(WEFT_HAVE_CUDNN)
  target_compile_definitions(weft PRIVATE WEFT_HAVE_CUDNN)
else()
  list(FILTER weft_cuda_sources EXCLUDE REGEX "/src/cuda/dnn[^/]*$")
endif()
if(WEFT_HAVE_NCCL)
  target_compile_definitions(weft PRIVATE WEFT_HAVE_NCCL)
else()
  list(FILTER weft_cuda_sources EXCLUDE REGEX "/src/cuda/nccl[^/]*$")
endif()
target_sources(weft PRIVATE ${weft_cuda_sources})
target_include_directories(weft SYSTEM PRIVATE ${CUDAToolkit_INCLUDE_DIRS})

file(GLOB weft_cuda_kernels CONFIGURE_DEPENDS src/cuda/*.cu)
foreach(source ${weft_cuda_kernels})
  get_filename_component(name ${source} NAME)
  set(object ${PROJECT_BINARY_DIR}/cuda/${name}.o)
  # No ccache: with several architectures it can give back an object of before an edit.
  add_custom_command(
    OUTPUT ${object}
    COMMAND ${CUDAToolkit_NVCC_EXECUTABLE} ${weft_cuda_flags} -I${PROJECT_SOURCE_DIR}/include -I${PROJECT_SOURCE_DIR}/src
            -D_GNU_SOURCE -MD -MF ${object}.d -MT ${object} -c ${source} -o ${object}
    DEPENDS ${source}
    DEPFILE ${object}.d
    COMMENT "Compiling ${name} for GPUs"
    VERBATIM)
  target_sources(weft PRIVATE ${object})
  set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
endforeach()
file(MAKE_DIRECTORY ${PROJECT_BINARY_DIR}/cuda)
