"""How models and numbers get from one agent to another: in memory or over gRPC, behind one interface."""
