# Installation: library, headers, CMake package and pkg-config file.
include(CMakePackageConfigHelpers)

install(TARGETS flashmha EXPORT FlashMHATargets)
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/flashmha" TYPE INCLUDE)
install(EXPORT FlashMHATargets NAMESPACE FlashMHA::
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/FlashMHA)

configure_package_config_file(
  "${PROJECT_SOURCE_DIR}/cmake/FlashMHAConfig.cmake.in" "${PROJECT_BINARY_DIR}/FlashMHAConfig.cmake"
  INSTALL_DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/FlashMHA)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/FlashMHAConfigVersion.cmake"
                                 COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/FlashMHAConfig.cmake"
              "${PROJECT_BINARY_DIR}/FlashMHAConfigVersion.cmake"
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/cmake/FlashMHA)

# The way up from the pkg-config file: the package may be moved after installation.
file(RELATIVE_PATH up "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
configure_file("${PROJECT_SOURCE_DIR}/cmake/flashmha.pc.in" "${PROJECT_BINARY_DIR}/flashmha.pc"
               @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/flashmha.pc" DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
