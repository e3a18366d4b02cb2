# Finds one static BLAS with the CBLAS interface as the target weft::blas. Ask for exactly one component, openblas or
# blis. Weft's own build and programs that use an installed libweft.a find it by this same file.
#
# The build without threads is looked for first (Debian puts it in <name>-serial/): Weft's thread pool calls it.
set(name ${WeftBlas_FIND_COMPONENTS})
find_library(WeftBlas_${name}_LIBRARY NAMES lib${name}.a PATH_SUFFIXES ${name}-serial NO_CACHE)
find_path(WeftBlas_${name}_INCLUDE_DIR NAMES cblas.h NO_CACHE
          PATH_SUFFIXES ${CMAKE_LIBRARY_ARCHITECTURE}/${name}-serial ${name}-serial ${name}
                        ${CMAKE_LIBRARY_ARCHITECTURE})
set(WeftBlas_LIBRARY ${WeftBlas_${name}_LIBRARY})

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(WeftBlas REQUIRED_VARS WeftBlas_${name}_LIBRARY WeftBlas_${name}_INCLUDE_DIR)
if(WeftBlas_FOUND AND NOT TARGET weft::blas)
  add_library(weft::blas STATIC IMPORTED)
  set_target_properties(weft::blas PROPERTIES
    IMPORTED_LOCATION ${WeftBlas_${name}_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES ${WeftBlas_${name}_INCLUDE_DIR})
  # Both libraries call libm, and BLIS locks its pools with pthreads.
  set_property(TARGET weft::blas PROPERTY INTERFACE_LINK_LIBRARIES m pthread)
endif()
