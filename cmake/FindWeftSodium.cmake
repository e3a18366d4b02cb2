# Finds libsodium as the target weft::sodium. Weft's own build and programs that use an installed libweft.a find it by
# this same file.
find_library(WeftSodium_LIBRARY NAMES sodium NO_CACHE)
find_path(WeftSodium_INCLUDE_DIR NAMES sodium.h NO_CACHE)

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(WeftSodium REQUIRED_VARS WeftSodium_LIBRARY WeftSodium_INCLUDE_DIR)
if(WeftSodium_FOUND AND NOT TARGET weft::sodium)
  add_library(weft::sodium UNKNOWN IMPORTED)
  set_target_properties(weft::sodium PROPERTIES
    IMPORTED_LOCATION ${WeftSodium_LIBRARY}
    INTERFACE_INCLUDE_DIRECTORIES ${WeftSodium_INCLUDE_DIR})
endif()
