# The wire of the template, which the suite of all wires runs.
if(TARGET transport_test_wire_own)
  target_sources(transport_test_wire_own PRIVATE ${PROJECT_SOURCE_DIR}/samples/wire_template/local_wire.c)
endif()
# Whose connections lead through a relay of its own.
if(TARGET transport_test_cut_off)
  target_link_options(transport_test_cut_off PRIVATE -Wl,--wrap=connect -Wl,--wrap=listen)
endif()
