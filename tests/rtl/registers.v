// Register map 1 around a core: CTRL, ID, VERSION, BUILD, inputs and outputs, on a bus of words.
`timescale 1ns / 1ps

module registers #(
    parameter [31:0] ID = 0,
    parameter [31:0] VERSION = 0,
    parameter [255:0] BUILD = 0,
    parameter N_IN = 16,
    parameter IN_BW = 8,
    parameter N_OUT = 4,
    parameter OUT_BW = 20,
    parameter LATENCY = 8
) (
    input clk,
    input write,
    input [11:0] address,
    input [31:0] data,
    output reg [31:0] q,
    output [N_IN*IN_BW-1:0] core_in,
    input [N_OUT*OUT_BW-1:0] core_out
);
  reg [IN_BW-1:0] in[0:N_IN-1];
  reg [31:0] out[0:N_OUT-1];
  reg [7:0] left = 0;
  reg busy = 0;
  reg done = 0;

  genvar g;
  generate
    for (g = 0; g < N_IN; g = g + 1) begin : pack
      assign core_in[g*IN_BW+:IN_BW] = in[g];
    end
  endgenerate

  wire [31:0] word = {22'd0, address[11:2]};
  integer i;
  always @(posedge clk) begin
    if (write && word == 0 && data[0] && !busy) begin
      busy <= 1;
      done <= 0;
      left <= LATENCY;
    end else if (busy && left != 0) begin
      left <= left - 1;
    end else if (busy) begin
      for (i = 0; i < N_OUT; i = i + 1) begin
        out[i] <= {{(32 - OUT_BW) {core_out[i*OUT_BW+OUT_BW-1]}}, core_out[i*OUT_BW+:OUT_BW]};
      end
      busy <= 0;
      done <= 1;
    end
    if (write && word >= 16 && word < 16 + N_IN) in[word-16] <= data[IN_BW-1:0];
    if (word == 0) q <= {29'd0, !busy, done, busy};
    else if (word == 4) q <= ID;
    else if (word == 5) q <= VERSION;
    else if (word >= 6 && word < 14) q <= BUILD[(13-word)*32+:32];
    else if (word >= 32 && word < 32 + N_OUT) q <= out[word-32];
    else q <= 0;
  end
endmodule
