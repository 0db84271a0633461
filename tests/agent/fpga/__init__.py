"""FPGAs: kernel-interface fakes, a stand-in for dfx-mgr, and RTL in simulation. No hardware."""
