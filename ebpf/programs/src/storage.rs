//! Socket storage with the flags and contexts that aya's own type does not have.
//!
//! `aya_ebpf::btf_maps::SkStorage` sets only `BPF_F_NO_PREALLOC`, and can be used only from a
//! `bpf_sock_addr`. This one can also clone values to accepted sockets, and works in every hook
//! that has a socket.

use core::{ffi::c_void, marker::PhantomData, ptr};

use aya_ebpf::{
    bindings::{
        BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE,
        bpf_map_type::BPF_MAP_TYPE_SK_STORAGE,
    },
    helpers::generated::{bpf_sk_storage_delete, bpf_sk_storage_get},
};

/// Flags of a storage that each socket has for itself: accepted sockets inherit nothing.
pub(crate) const PER_SOCKET: usize = BPF_F_NO_PREALLOC as usize;

/// Flags of a storage that a listener hands down to the sockets it accepts.
pub(crate) const INHERITED: usize = (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize;

/// A socket that the kernel gave to a hook: a `bpf_sock`, or a typed kernel socket.
#[derive(Clone, Copy)]
pub(crate) struct Socket(*mut c_void);

impl Socket {
    /// Wraps what a context or helper returned; `None` for a null pointer, as the verifier demands.
    #[inline(always)]
    pub(crate) fn new<T>(socket: *mut T) -> Option<Self> {
        if socket.is_null() { None } else { Some(Self(socket.cast())) }
    }

    /// The pointer, for helpers that take a socket.
    #[inline(always)]
    pub(crate) fn as_ptr(self) -> *mut c_void {
        self.0
    }
}

/// Definition of a `BPF_MAP_TYPE_SK_STORAGE`, read by the loader from BTF; the pointers are never followed.
#[repr(C)]
pub(crate) struct SkStorage<T, const FLAGS: usize> {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
    anchor: PhantomData<T>,
}

// SAFETY: its fields stay null in the object; only the address of the whole struct is used, as that
// of the map.
unsafe impl<T, const FLAGS: usize> Sync for SkStorage<T, FLAGS> {}

impl<T, const FLAGS: usize> SkStorage<T, FLAGS> {
    pub(crate) const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
            anchor: PhantomData,
        }
    }

    /// The socket's value, if it has one.
    #[inline(always)]
    pub(crate) fn get(&self, socket: Socket) -> Option<&T> {
        // SAFETY: the map is this one, and the kernel vouched for the socket when it became a `Socket`.
        let value = unsafe { bpf_sk_storage_get(self.map(), socket.as_ptr(), ptr::null_mut(), 0) };
        // SAFETY: null, or the storage of a socket that outlives the hook's run (it holds RCU).
        unsafe { value.cast::<T>().as_ref() }
    }

    /// Sets the socket's value. Returns `false` if there is no memory for it.
    #[inline(always)]
    #[must_use = "a value that is not stored must refuse the connection"]
    pub(crate) fn set(&self, socket: Socket, mut value: T) -> bool {
        let create = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
        let initial = ptr::from_mut(&mut value).cast();
        // SAFETY: `initial` points at a whole `T` on the stack, which is what the map's values are.
        let stored = unsafe { bpf_sk_storage_get(self.map(), socket.as_ptr(), initial, create) };
        if stored.is_null() {
            return false;
        }
        // SAFETY: not null, so the value of this socket, which is a `T`. An existing one is not
        // initialised by the helper, hence the write.
        unsafe { stored.cast::<T>().write(value) };
        true
    }

    /// Removes the socket's value; a socket that has none stays as it is.
    #[inline(always)]
    pub(crate) fn forget(&self, socket: Socket) {
        // SAFETY: this map and a socket the kernel vouched for; the only failure is "has none".
        unsafe { bpf_sk_storage_delete(self.map(), socket.as_ptr()) };
    }

    #[inline(always)]
    fn map(&self) -> *mut c_void {
        ptr::from_ref(self).cast_mut().cast()
    }
}
