//! The part of the program itself that is in memory.
#![expect(
    unsafe_code,
    reason = "only the loader knows where it put the program, and tells it by a callback"
)]

use std::{
    ffi::{CStr, c_int, c_void},
    ops::Range,
};

/// Drops all code and constants from memory; the kernel brings back from its page cache, page by page, what is needed
/// again. Most of what an agent has read by the time it serves was needed only to start.
///
/// Returns how many bytes it dropped. It reports no errors, because a failure costs memory and
/// nothing else.
pub fn drop_read_only_pages() -> usize {
    let mut segments: Vec<Range<usize>> = Vec::new();
    // SAFETY: the callback has the signature that the loader expects and gets the vector that lives
    // until the call ends; it is called on this thread only.
    unsafe { libc::dl_iterate_phdr(Some(collect), (&raw mut segments).cast()) };
    segments.iter().map(drop_pages).sum()
}

/// Collects the segments of one program or library that the loader never writes to.
unsafe extern "C" fn collect(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    segments: *mut c_void,
) -> c_int {
    // SAFETY: the loader gives a valid object for as long as the callback runs.
    let object = unsafe { &*object };
    // SAFETY: this is the vector of `drop_read_only_pages`, which nobody else uses meanwhile.
    let segments = unsafe { &mut *segments.cast::<Vec<Range<usize>>>() };
    // SAFETY: a name is either missing or a string that ends with zero.
    let name = (!object.dlpi_name.is_null()).then(|| unsafe { CStr::from_ptr(object.dlpi_name) });
    // The program itself has no name. What the kernel maps by itself, such as the vDSO, has a name that
    // is not a path.
    if name.is_some_and(|name| !matches!(name.to_bytes().first(), None | Some(b'/'))) {
        return 0;
    }
    // SAFETY: the object has `dlpi_phnum` headers at `dlpi_phdr`.
    let headers =
        unsafe { std::slice::from_raw_parts(object.dlpi_phdr, usize::from(object.dlpi_phnum)) };
    for header in headers {
        if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0 {
            let (start, size) = (object.dlpi_addr + header.p_vaddr, header.p_memsz);
            let (Ok(start), Ok(size)) = (usize::try_from(start), usize::try_from(size)) else {
                continue;
            };
            segments.push(start..start.saturating_add(size));
        }
    }
    0
}

/// Drops the whole pages of a segment and returns how many bytes that was. A page at the edge may
/// be shared with a segment that is written to.
fn drop_pages(segment: &Range<usize>) -> usize {
    let page = rustix::param::page_size();
    let (start, end) = (segment.start.next_multiple_of(page), segment.end / page * page);
    let Some(length) = end.checked_sub(start) else { return 0 };
    let address = std::ptr::with_exposed_provenance_mut(start);
    // SAFETY: a private mapping of a file that nothing has written to reads the same after its pages were dropped, so
    // neither code nor constants change for anyone. All relocations are in writable segments.
    let dropped =
        unsafe { rustix::mm::madvise(address, length, rustix::mm::Advice::LinuxDontNeed) };
    if dropped.is_ok() { length } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Resident memory of mapped files, in KiB.
    fn resident() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn the_program_goes_on_with_less_of_it_in_memory() {
        let before = resident();
        assert!(drop_read_only_pages() > 0);
        let after = resident();
        assert!(after < before, "{before} KiB before, {after} KiB after");
    }
}
