# What others build against after `cmake --install`: a CMake package with espalier::shared and espalier::static, and a
# pkg-config file. The libraries that Espalier uses appear in both only as plain linker flags: no public header needs
# theirs, so that users of the shared library need none of their development files.
include(CMakePackageConfigHelpers)

set(ESPALIER_PRIVATE_LINK ${OPENBLAS_LDFLAGS} ${HDF5_LDFLAGS} ${CYAML_LDFLAGS} ${YAML_LDFLAGS} ${JANSSON_LDFLAGS}
  -lpng -lz ${OpenMP_C_FLAGS} -lpthread -lm)
list(REMOVE_DUPLICATES ESPALIER_PRIVATE_LINK)
target_link_libraries(espalier_static PRIVATE "$<INSTALL_INTERFACE:${ESPALIER_PRIVATE_LINK}>")

# The same names for those who take Espalier in with add_subdirectory().
add_library(espalier::static ALIAS espalier_static)
add_library(espalier::shared ALIAS espalier_shared)
add_library(espalier::espalier ALIAS espalier_shared)

set(package_folder ${CMAKE_INSTALL_LIBDIR}/cmake/espalier)
install(TARGETS espalier_static espalier_shared EXPORT espalier)
install(EXPORT espalier NAMESPACE espalier:: FILE espalier-targets.cmake DESTINATION ${package_folder})
configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/espalier-config.cmake.in
  ${PROJECT_BINARY_DIR}/espalier-config.cmake INSTALL_DESTINATION ${package_folder}
  NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/espalier-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/espalier-config.cmake ${PROJECT_BINARY_DIR}/espalier-config-version.cmake
  DESTINATION ${package_folder})

# The prefix is found from where the file lies, so that `cmake --install --prefix` may choose it.
file(RELATIVE_PATH ESPALIER_PC_PREFIX /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
string(REGEX REPLACE "/$" "" ESPALIER_PC_PREFIX ${ESPALIER_PC_PREFIX})
list(JOIN ESPALIER_PRIVATE_LINK " " ESPALIER_PC_LIBS_PRIVATE)
configure_file(${PROJECT_SOURCE_DIR}/cmake/espalier.pc.in ${PROJECT_BINARY_DIR}/espalier.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/espalier.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
