//! Enrols pods: listeners in their namespaces, hooks on their sockets, the guard on their veth.
