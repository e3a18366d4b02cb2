# The wire of the template, which the suite of all wires runs.
if(TARGET transport_test_wire_own)
  target_sources(transport_test_wire_own PRIVATE ${PROJECT_SOURCE_DIR}/samples/wire_template/local_wire.c)
endif()
