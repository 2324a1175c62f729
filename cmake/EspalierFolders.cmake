# One CMake target a folder, so that the floor plan is enforced: sources write #include <espalier/name.h>, in the tree as
# after installation, and the compiler finds such a header only if the folder it lies in is this one or among INCLUDES.

set(ESPALIER_WARNINGS -Wall -Wextra -Werror -Wshadow -Wconversion -Wsign-conversion -Wdouble-promotion -Wcast-qual
  -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith -Wvla -Wformat=2 -Wundef)

# Contraction: a x b + c with one rounding where the processor can, which is faster and nearer the exact value. The order of
# operations stays what the code says.
add_library(espalier_flags INTERFACE)
target_compile_options(espalier_flags INTERFACE ${ESPALIER_WARNINGS} -fno-math-errno -fno-trapping-math
  -fopenmp-simd -ffp-contract=fast)
target_compile_definitions(espalier_flags INTERFACE _POSIX_C_SOURCE=200809L ESP_VERSION="${PROJECT_VERSION}")
if(CMAKE_C_COMPILER_ID MATCHES Clang)
  # GCC knows that NAN and INFINITY, which are floats, lose nothing as doubles. A loop that stays scalar is right, too.
  target_compile_options(espalier_flags INTERFACE -Wno-double-promotion -Wno-pass-failed)
endif()
if(ESPALIER_NATIVE)
  target_compile_options(espalier_flags INTERFACE -march=native)
endif()
if(ESPALIER_SANITIZE)
  # Multiversioned functions are resolved before a sanitizer's run time is up, so those builds do without them.
  target_compile_options(espalier_flags INTERFACE -fsanitize=${ESPALIER_SANITIZE} -fno-sanitize-recover=all
    -fno-omit-frame-pointer)
  target_link_options(espalier_flags INTERFACE -fsanitize=${ESPALIER_SANITIZE})
  target_compile_definitions(espalier_flags INTERFACE ESP_NO_MULTIVERSIONING)
endif()
if(ESPALIER_COVERAGE)
  target_compile_options(espalier_flags INTERFACE --coverage)
  target_link_options(espalier_flags INTERFACE --coverage)
endif()

# Sources and public headers of a folder and of its wings (the folders in it). Headers called *_internal.h stay in the
# folder, where every wing sees them.
function(espalier_sources folder out_sources out_headers)
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${folder}/*.c)
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${folder}/*.h)
  list(FILTER headers EXCLUDE REGEX "_internal\\.h$")
  set(${out_sources} ${sources} PARENT_SCOPE)
  set(${out_headers} ${headers} PARENT_SCOPE)
endfunction()

# Links the headers into a folder of the build, for the compiler to find.
function(link_headers root)
  file(MAKE_DIRECTORY ${root})
  foreach(header IN LISTS ARGN)
    get_filename_component(name ${header} NAME)
    file(CREATE_LINK ${header} ${root}/${name} SYMBOLIC)
  endforeach()
endfunction()

function(espalier_object_library target folder)
  cmake_parse_arguments(PARSE_ARGV 2 FOLDER "" "" "INCLUDES;USES")
  espalier_sources(${folder} sources headers)
  set(root ${PROJECT_BINARY_DIR}/include/${folder})
  set(internal_root ${PROJECT_BINARY_DIR}/internal/${folder})
  file(GLOB_RECURSE internal CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${folder}/*_internal.h)
  link_headers(${root}/espalier ${headers})
  link_headers(${internal_root} ${internal})
  add_library(${target} OBJECT ${sources})
  target_include_directories(${target} PUBLIC ${root} PRIVATE ${internal_root})
  target_link_libraries(${target} PRIVATE espalier_flags PUBLIC ${FOLDER_INCLUDES} ${FOLDER_USES})
  set_target_properties(${target} PROPERTIES C_STANDARD 11 C_STANDARD_REQUIRED ON C_EXTENSIONS OFF
    C_VISIBILITY_PRESET hidden POSITION_INDEPENDENT_CODE ON)
endfunction()

# espalier_folder(name INCLUDES lower folders USES libraries) makes the target esp_<name>.
function(espalier_folder folder)
  cmake_parse_arguments(PARSE_ARGV 1 FOLDER "" "" "INCLUDES;USES")
  list(TRANSFORM FOLDER_INCLUDES PREPEND esp_)
  espalier_object_library(esp_${folder} ${folder} INCLUDES ${FOLDER_INCLUDES} USES ${FOLDER_USES})
  set_property(GLOBAL APPEND PROPERTY ESPALIER_USES ${FOLDER_USES})
endfunction()

# The static and the shared library from the folders' objects, and what installation needs. espalier.h, which includes all
# public headers, belongs to no folder.
function(espalier_libraries)
  set(root ${PROJECT_BINARY_DIR}/include/all)
  link_headers(${root}/espalier ${PROJECT_SOURCE_DIR}/espalier.h)
  install(FILES ${PROJECT_SOURCE_DIR}/espalier.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/espalier)
  get_property(uses GLOBAL PROPERTY ESPALIER_USES)
  list(REMOVE_DUPLICATES uses)
  foreach(kind IN ITEMS static shared)
    string(TOUPPER ${kind} type)
    add_library(espalier_${kind} ${type})
    set_target_properties(espalier_${kind} PROPERTIES OUTPUT_NAME espalier EXPORT_NAME ${kind}
      VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR})
    target_include_directories(espalier_${kind} INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
      $<BUILD_INTERFACE:${root}>)
    foreach(folder IN LISTS ARGN)
      target_sources(espalier_${kind} PRIVATE $<TARGET_OBJECTS:esp_${folder}>)
      target_include_directories(espalier_${kind} INTERFACE $<BUILD_INTERFACE:${PROJECT_BINARY_DIR}/include/${folder}>)
      espalier_sources(${folder} sources headers)
      if(kind STREQUAL static)
        install(FILES ${headers} DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/espalier)
      endif()
    endforeach()
    # Not for those who use an installed library; what they must link is said in EspalierInstall.cmake.
    target_link_libraries(espalier_${kind} PRIVATE "$<BUILD_INTERFACE:espalier_flags;${uses};m>")
  endforeach()
endfunction()

# The program from the sources of a folder, the folders it USES besides the library's (targets esp_<name>), and the library.
function(espalier_program folder)
  cmake_parse_arguments(PARSE_ARGV 1 FOLDER "" "" "USES")
  espalier_sources(${folder} sources headers)
  file(GLOB_RECURSE internal CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/${folder}/*_internal.h)
  set(internal_root ${PROJECT_BINARY_DIR}/internal/${folder})
  link_headers(${internal_root} ${internal})
  add_executable(espalier ${sources})
  target_include_directories(espalier PRIVATE ${internal_root})
  target_link_libraries(espalier PRIVATE ${FOLDER_USES} espalier_static espalier_flags PkgConfig::JANSSON)
  set_target_properties(espalier PROPERTIES C_STANDARD 11 C_EXTENSIONS OFF RUNTIME_OUTPUT_DIRECTORY ${PROJECT_BINARY_DIR})
  install(TARGETS espalier RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
endfunction()
