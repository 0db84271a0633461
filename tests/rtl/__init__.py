"""The test network as hardware: da4ml's Verilog behind a register window, in Verilator."""
