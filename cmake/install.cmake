# What `cmake --install` gives: libweft.a, the headers, weftrun, and two ways to find them, a CMake package
# (find_package(weft), weft::weft) and a pkg-config file. Both say what libweft.a itself needs; there is no shared
# library, so pkg-config gives the whole line with or without --static.
include(CMakePackageConfigHelpers)
set(weft_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/weft)

install(TARGETS weft EXPORT weftTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
        FILES_MATCHING PATTERN "*.h" PATTERN "*.def")
install(EXPORT weftTargets NAMESPACE weft:: DESTINATION ${weft_package_dir})
configure_package_config_file(cmake/weftConfig.cmake.in ${PROJECT_BINARY_DIR}/cmake/weftConfig.cmake
                              INSTALL_DESTINATION ${weft_package_dir} NO_SET_AND_CHECK_MACRO)
# Before 1.0 a minor version may break.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/cmake/weftConfigVersion.cmake
                                 COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/cmake/weftConfig.cmake ${PROJECT_BINARY_DIR}/cmake/weftConfigVersion.cmake
              cmake/FindWeftSodium.cmake DESTINATION ${weft_package_dir})

# The prefix is written relative to the file, so that the installed tree can be moved. It may be absolute only where
# the library folder is.
if(IS_ABSOLUTE ${CMAKE_INSTALL_LIBDIR})
  set(weft_pc_prefix ${CMAKE_INSTALL_PREFIX})
else()
  file(RELATIVE_PATH weft_pc_up /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
  set(weft_pc_prefix "\${pcfiledir}/${weft_pc_up}")
endif()
string(REPLACE ";" " " weft_pc_libraries "${weft_pc_libraries}")
string(REPLACE ";" " " weft_pc_requires "${weft_pc_requires}")
configure_file(cmake/weft.pc.in ${PROJECT_BINARY_DIR}/cmake/weft.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/cmake/weft.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
