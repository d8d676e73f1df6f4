//! Fills the mesh state from a file and a directory of policies, and follows their changes.
