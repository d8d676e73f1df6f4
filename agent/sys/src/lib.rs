//! Linux without BPF: namespaces, sockets, netlink, limits.
