"""FPGAs: agentd programs them (`region`), a worker gets no more than a register window (`handed`).

Writing to an FPGA's manager is a privilege that can hang the bus of the whole machine, so no worker
has it. `region` is the only part that touches sysfs, configfs, the firmware folder or a vendor's
daemon; ways of programming are in `dfx_mgr`, `xrt` and `kernel`, tried in this order.
"""
