"""How the processes of one device talk: control messages, and frames of the data plane."""
