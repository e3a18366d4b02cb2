# What Weft links. Each is one line in ARCHITECTURE.md. Optional ones can be switched off and the tests still pass.
#
#   weft_public_libraries    what a program that links libweft.a needs with it
#   weft_private_definitions WEFTI_HAVE_… for the library's own sources
#   weft_found               plain words, one line a dependency, for the report at the end of configuring
list(APPEND CMAKE_MODULE_PATH ${PROJECT_SOURCE_DIR}/cmake)
set(weft_private_definitions "")
set(weft_found "")

find_package(Threads REQUIRED)
set(weft_public_libraries Threads::Threads m ${CMAKE_DL_LIBS})

# GEMM. A static BLAS without threads of its own: the CPU device calls it from its pool.
set_property(CACHE WEFT_BLAS PROPERTY STRINGS auto blis openblas none)
if(NOT WEFT_BLAS MATCHES "^(auto|blis|openblas|none)$")
  message(FATAL_ERROR "WEFT_BLAS=${WEFT_BLAS}: expected auto, blis, openblas or none")
endif()
set(weft_blas none)
if(WEFT_BLAS STREQUAL "auto")
  set(weft_blas_wanted openblas blis)
elseif(NOT WEFT_BLAS STREQUAL "none")
  set(weft_blas_wanted ${WEFT_BLAS})
endif()
foreach(name ${weft_blas_wanted})
  if(weft_blas STREQUAL "none")
    find_package(WeftBlas QUIET MODULE COMPONENTS ${name})
    if(WeftBlas_FOUND)
      set(weft_blas ${name})
    endif()
  endif()
endforeach()
if(NOT weft_blas STREQUAL "none")
  string(TOUPPER ${weft_blas} name)
  list(APPEND weft_public_libraries weft::blas)
  list(APPEND weft_private_definitions WEFTI_HAVE_${name})
  list(APPEND weft_found "BLAS: ${weft_blas} (${WeftBlas_LIBRARY})")
elseif(WEFT_BLAS MATCHES "^(blis|openblas)$")
  message(FATAL_ERROR "WEFT_BLAS=${WEFT_BLAS}, but its static library lib${WEFT_BLAS}.a was not found "
                      "(Debian: lib${WEFT_BLAS}-serial-dev)")
else()
  list(APPEND weft_found "BLAS: none, matrix products use Weft's own kernels")
endif()

# zlib reads gzip data sets. Without it they are refused with a message that says so.
option(WEFT_ZLIB "Read gzip files (needs zlib1g-dev)" ON)
set(ZLIB_FOUND FALSE)
if(WEFT_ZLIB)
  find_package(ZLIB QUIET)
endif()
if(ZLIB_FOUND)
  list(APPEND weft_public_libraries ZLIB::ZLIB)
  list(APPEND weft_private_definitions WEFTI_HAVE_ZLIB)
  list(APPEND weft_found "zlib: ${ZLIB_VERSION_STRING}, gzip data sets are read directly")
else()
  list(APPEND weft_found "zlib: none, gzip files are refused (Debian: zlib1g-dev)")
endif()
