//! An IP address of either family as a map key.

use core::{
    mem::{align_of, size_of},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// An IP address, IPv4 mapped into IPv6 (`::ffff:a.b.c.d`), in network order.
///
/// Stored as in the kernel's contexts, as four words of network-order bytes: BPF has no unaligned
/// loads, and sixteen single bytes would be read one by one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IpKey {
    words: [u32; 4],
}

const _: () = {
    assert!(size_of::<IpKey>() == 16);
    assert!(align_of::<IpKey>() == 4);
};

/// The third word of a mapped address.
const MAPPED: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

/// The last word of `::1`.
const ONE: u32 = u32::from_ne_bytes([0, 0, 0, 1]);

impl IpKey {
    /// `::`, which also stands for "no address".
    pub const UNSPECIFIED: Self = Self { words: [0; 4] };

    /// Maps an IPv4 address, one word of network-order bytes.
    #[must_use]
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self { words: [0, 0, MAPPED, word] }
    }

    /// Takes the four words of an IPv4-mapped or IPv6 address, each of network-order bytes.
    #[must_use]
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        Self { words }
    }

    /// The address as four words of network-order bytes.
    #[must_use]
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        self.words
    }

    /// Whether this is a mapped IPv4 address.
    #[must_use]
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let [w0, w1, w2, _] = self.words;
        w0 == 0 && w1 == 0 && w2 == MAPPED
    }

    /// Whether this is `0.0.0.0` or `::`.
    #[must_use]
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        let [w0, w1, w2, w3] = self.words;
        w0 == 0 && w1 == 0 && (w2 == 0 || w2 == MAPPED) && w3 == 0
    }

    /// Whether this is in `127.0.0.0/8` or `::1`.
    #[must_use]
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        let [w0, w1, w2, w3] = self.words;
        let [first, ..] = w3.to_ne_bytes();
        w0 == 0 && w1 == 0 && ((w2 == MAPPED && first == 127) || (w2 == 0 && w3 == ONE))
    }

    /// Whether this is in `fe80::/10`.
    #[must_use]
    #[inline(always)]
    pub const fn is_link_local_v6(&self) -> bool {
        let [w0, ..] = self.words;
        let [first, second, ..] = w0.to_ne_bytes();
        first == 0xfe && second & 0xc0 == 0x80
    }

    /// The address in its own family: a mapped one comes back as IPv4.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        let [w0, w1, w2, w3] = self.words.map(|word| u128::from(u32::from_be(word)));
        Ipv6Addr::from_bits((w0 << 96) | (w1 << 64) | (w2 << 32) | w3).to_canonical()
    }
}

impl From<Ipv4Addr> for IpKey {
    fn from(address: Ipv4Addr) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(address.octets()))
    }
}

impl From<Ipv6Addr> for IpKey {
    fn from(address: Ipv6Addr) -> Self {
        let [w0, w1, w2, w3, w4, w5, w6, w7] = address.segments().map(u32::from);
        let words = [(w0 << 16) | w1, (w2 << 16) | w3, (w4 << 16) | w5, (w6 << 16) | w7];
        Self { words: words.map(u32::to_be) }
    }
}

impl From<IpAddr> for IpKey {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> IpKey {
        text.parse::<IpAddr>().expect("a test address").into()
    }

    #[test]
    fn v4_and_its_mapped_form_are_one_key() {
        assert_eq!(key("10.1.0.2"), key("::ffff:10.1.0.2"));
        assert_eq!(key("10.1.0.2").ip(), "10.1.0.2".parse::<IpAddr>().unwrap());
    }

    #[test]
    fn words_come_back_as_the_same_address() {
        for text in ["10.1.0.2", "fd00:1::2", "::", "::1"] {
            assert_eq!(IpKey::from_words(key(text).words()), key(text));
        }
    }

    #[test]
    fn loopback_is_recognised_in_both_families() {
        for text in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(key(text).is_loopback(), "{text}");
        }
        for text in ["128.0.0.1", "10.127.0.1", "::2", "::", "1::1", "::127.0.0.1"] {
            assert!(!key(text).is_loopback(), "{text}");
        }
    }

    #[test]
    fn unspecified_is_recognised_in_both_families() {
        assert!(key("0.0.0.0").is_unspecified());
        assert!(key("::").is_unspecified());
        assert!(!key("::1").is_unspecified());
        assert!(!key("0.0.0.1").is_unspecified());
    }

    #[test]
    fn only_fe80_slash_10_is_link_local() {
        assert!(key("fe80::1").is_link_local_v6());
        assert!(key("febf::1").is_link_local_v6());
        assert!(!key("fec0::1").is_link_local_v6());
        assert!(!key("169.254.0.1").is_link_local_v6());
    }
}
