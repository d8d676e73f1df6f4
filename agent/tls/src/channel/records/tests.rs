//! Our records after the handshake: beside rustls at the other end, and against what no peer may say.

use rustls::{
    SupportedCipherSuite,
    crypto::aws_lc_rs::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384},
    unbuffered::ConnectionState,
};

use super::*;
use crate::{
    TlsError,
    channel::{
        End,
        tests::{Side, joined, say},
    },
};

const BOTH: (bool, bool) = (true, true);
const SUITES: [SupportedCipherSuite; 2] = [TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384];

fn records(side: &mut Side) -> &mut Records {
    match &mut side.channel.end {
        End::Settled(records) => records,
        End::Client(_) | End::Server(_) | End::Lost => panic!("rustls is still there"),
    }
}

/// Two ends that both use our records.
fn ours() -> (Side, Side) {
    joined(BOTH, |identity| identity)
}

/// Makes `from` send something that it never would by itself.
fn utter(from: &mut Side, kind: ContentType, content: &[u8]) {
    let mut outgoing = std::mem::take(&mut from.outgoing);
    records(from).sending.seal(kind, content, &mut outgoing).unwrap();
    from.outgoing = outgoing;
}

fn hear(from: &mut Side, to: &mut Side) -> Result<(), TlsError> {
    to.receive(&mut std::mem::take(&mut from.outgoing))
}

/// Returns the alert that `from` has sent last, as `to` reports it.
fn alert(from: &mut Side, to: &mut Side) -> String {
    assert!(!from.outgoing.is_empty(), "nothing was said");
    hear(from, to).unwrap_err().to_string()
}

/// Sends a record that must be refused. Returns the receiver's error, and the sender's once it has the alert.
fn refused(kind: ContentType, content: &[u8]) -> (String, String) {
    let (mut from, mut to) = ours();
    utter(&mut from, kind, content);
    let error = hear(&mut from, &mut to).unwrap_err().to_string();
    assert!(to.plaintext.is_empty());
    assert!(to.channel.send(b"more", &mut Vec::new()).is_err());
    (error, alert(&mut to, &mut from))
}

#[test]
fn every_pair_of_ours_and_rustls_understands_each_other_in_every_suite() {
    for suite in SUITES {
        for introduced in [(true, true), (true, false), (false, true)] {
            let (mut client, mut server) =
                joined(introduced, |identity| identity.with_suite(suite));
            for length in [0, 1, 0x3fff, 0x4000, 0x4001, 100_000] {
                let bytes: Vec<u8> = (0_u8..=250).cycle().take(length).collect();
                say(&mut client, &mut server, &bytes);
                say(&mut server, &mut client, &bytes);
            }
            client.channel.close(&mut client.outgoing).unwrap();
            hear(&mut client, &mut server).unwrap();
            assert!(server.progress.closed);
            say(&mut server, &mut client, b"the other way is open");
        }
    }
}

#[test]
fn keys_are_replaced_before_they_have_sealed_too_much_and_rustls_follows() {
    for suite in SUITES {
        for introduced in [(true, true), (true, false)] {
            let (mut client, mut server) =
                joined(introduced, |identity| identity.with_suite(suite));
            assert_eq!(records(&mut client).limit, 1 << 24, "what RFC 8446 section 5.5 allows");
            records(&mut client).limit = 3;
            let before = records(&mut client).sending_secret.clone();
            for number in 0..20 {
                say(&mut client, &mut server, &[number; 100]);
                say(&mut server, &mut client, b"answer");
                assert!(records(&mut client).sending.records() <= 4);
            }
            assert_ne!(records(&mut client).sending_secret, before);
        }
    }
}

#[test]
fn a_peer_that_replaces_its_keys_and_asks_for_ours_gets_them_once() {
    for suite in SUITES {
        let (mut client, mut server) = joined((false, true), |identity| identity.with_suite(suite));
        for _ in 0..3 {
            let End::Client(connection) = &mut client.channel.end else { panic!("not rustls") };
            // rustls also asks us to replace the keys of the other direction.
            let state = connection.process_tls_records(&mut []).state.unwrap();
            let ConnectionState::WriteTraffic(traffic) = state else { panic!("{state:?}") };
            traffic.refresh_traffic_keys().unwrap();
            client.receive(&mut Vec::new()).unwrap();
        }
        hear(&mut client, &mut server).unwrap();
        assert!(server.outgoing.is_empty(), "an answer before there is anything to say");
        let before = records(&mut server).sending_secret.clone();
        say(&mut server, &mut client, b"under new keys");
        let after = records(&mut server).sending_secret.clone();
        assert_ne!(before, after);
        say(&mut server, &mut client, b"under the same");
        assert_eq!(records(&mut server).sending_secret, after);
        say(&mut client, &mut server, b"and the other way");
    }
}

#[test]
fn a_peer_cannot_have_keys_replaced_for_ever() {
    let (mut client, mut server) = ours();
    for round in 0..3 {
        for _ in 0..MAX_IDLE_UPDATES {
            utter(&mut client, ContentType::Handshake, &[KEY_UPDATE, 0, 0, 1, 1]);
            let Records { sending, sending_secret, suite, .. } = records(&mut client);
            sending.advance(suite, sending_secret).unwrap();
        }
        if round < 2 {
            hear(&mut client, &mut server).unwrap();
            say(&mut client, &mut server, b"data between");
        }
    }
    utter(&mut client, ContentType::Handshake, &[KEY_UPDATE, 0, 0, 1, 1]);
    let error = hear(&mut client, &mut server).unwrap_err().to_string();
    assert!(error.contains("TooManyKeyUpdateRequests"), "{error}");
}

#[test]
fn tickets_that_come_late_or_in_pieces_are_passed_over_by_clients_only() {
    let mut ticket = vec![NEW_SESSION_TICKET, 0, 1, 44];
    ticket.extend([7; 300]);
    let (mut client, mut server) = ours();
    for piece in ticket.chunks(50) {
        utter(&mut server, ContentType::Handshake, piece);
    }
    let mut two = ticket.clone();
    two.extend(&ticket);
    utter(&mut server, ContentType::Handshake, &two);
    hear(&mut server, &mut client).unwrap();
    say(&mut server, &mut client, b"data");
    let (error, told) = refused(ContentType::Handshake, &ticket);
    assert!(error.contains("UnexpectedMessage"), "{error}");
    assert!(told.contains("UnexpectedMessage"), "{told}");
}

#[test]
fn what_no_peer_may_say_ends_the_connection_with_the_alert_of_the_rfc() {
    let says = |kind, content: &[u8]| refused(ContentType::from(kind), content);
    for (kind, content, error, told) in [
        // Messages that belong to a handshake, and an empty record.
        (22, [1, 0, 0, 1, 0].as_slice(), "UnexpectedMessage", "UnexpectedMessage"),
        (22, &[13, 0, 0, 0], "UnexpectedMessage", "UnexpectedMessage"),
        (22, &[], "InvalidEmptyPayload", "DecodeError"),
        // Key updates: neither 0 nor 1, too long, too short, followed by more.
        (22, &[24, 0, 0, 1, 2], "InvalidKeyUpdate", "DecodeError"),
        (22, &[24, 0, 0, 2, 0, 0], "InvalidKeyUpdate", "DecodeError"),
        (22, &[24, 0, 0, 0], "InvalidKeyUpdate", "DecodeError"),
        (22, &[24, 0, 0, 1, 0, 24], "KeyEpochWithPendingFragment", "UnexpectedMessage"),
        // A ticket for a server.
        (22, &[4, 0, 0, 1, 0], "UnexpectedMessage", "UnexpectedMessage"),
        // Alerts of another length.
        (21, &[], "MessageTooShort", "DecodeError"),
        (21, &[1], "MessageTooShort", "DecodeError"),
        (21, &[1, 0, 0], "MessageTooShort", "DecodeError"),
        // Other kinds of records.
        (20, &[1], "UnexpectedMessage", "UnexpectedMessage"),
        (24, &[1, 0, 0], "UnexpectedMessage", "UnexpectedMessage"),
        (255, &[0; 9], "UnexpectedMessage", "UnexpectedMessage"),
        // Nothing but padding.
        (0, &[0; 9], "IllegalTlsInnerPlaintext", "UnexpectedMessage"),
        (0, &[], "IllegalTlsInnerPlaintext", "UnexpectedMessage"),
        // Too much plaintext for a record.
        (23, &vec![1; MAX_PLAINTEXT + 1], "excess record size", "RecordOverflow"),
    ] {
        let (found, alert) = says(kind, content);
        assert!(found.contains(error), "{kind} {error}: {found}");
        assert!(alert.contains(told), "{kind} {error}: {alert}");
    }
}

#[test]
fn a_message_that_may_not_come_is_refused_by_its_header_before_the_rest_is_kept() {
    for (from_server, header, error) in [
        (false, [KEY_UPDATE, 0, 0xff, 0xff], "InvalidKeyUpdate"),
        (true, [KEY_UPDATE, 0, 0, 2], "InvalidKeyUpdate"),
        (false, [NEW_SESSION_TICKET, 0, 1, 0], "UnexpectedMessage"),
        (true, [NEW_SESSION_TICKET, 0, 0x40, 1], "HandshakePayloadTooLarge"),
        (true, [NEW_SESSION_TICKET, 1, 0, 0], "HandshakePayloadTooLarge"),
        (true, [13, 0, 0xff, 0xff], "UnexpectedMessage"),
    ] {
        let (mut client, mut server) = ours();
        let (from, to) =
            if from_server { (&mut server, &mut client) } else { (&mut client, &mut server) };
        utter(from, ContentType::Handshake, &header);
        let found = hear(from, to).unwrap_err().to_string();
        assert!(found.contains(error), "{header:?}: {found}");
    }
}

#[test]
fn padding_is_taken_off() {
    let (mut client, mut server) = ours();
    utter(&mut client, ContentType::from(0), &[b'a', 0, b'b', 0, 23, 0, 0, 0]);
    hear(&mut client, &mut server).unwrap();
    assert_eq!(server.plaintext, [b'a', 0, b'b', 0]);
}

#[test]
fn a_message_in_pieces_is_not_interrupted() {
    for kind in [ContentType::ApplicationData, ContentType::Alert] {
        let (mut client, mut server) = ours();
        utter(&mut server, ContentType::Handshake, &[NEW_SESSION_TICKET, 0, 0, 9, 1]);
        utter(&mut server, kind, &[1, 0]);
        let error = hear(&mut server, &mut client).unwrap_err().to_string();
        assert!(error.contains("MessageInterleavedWithHandshakeMessage"), "{error}");
    }
}

#[test]
fn alerts_end_the_connection_and_are_not_answered() {
    let (mut client, mut server) = ours();
    utter(&mut client, ContentType::Alert, &[WARNING, 90]);
    hear(&mut client, &mut server).unwrap();
    assert!(!server.progress.closed);
    utter(&mut client, ContentType::Alert, &[WARNING, AlertDescription::BadRecordMac.into()]);
    let error = hear(&mut client, &mut server).unwrap_err().to_string();
    assert!(error.contains("BadRecordMac"), "{error}");
    assert!(server.outgoing.is_empty());
}

#[test]
fn what_follows_the_end_does_not_count() {
    let (mut client, mut server) = ours();
    client.channel.close(&mut client.outgoing).unwrap();
    client.channel.send(b"more", &mut client.outgoing).unwrap();
    let mut wire = std::mem::take(&mut client.outgoing);
    server.receive(&mut wire).unwrap();
    assert!(server.progress.closed && server.plaintext.is_empty() && wire.is_empty());
}

#[test]
fn no_record_counts_twice_or_out_of_turn_or_for_the_other_direction() {
    type Spoil = fn(Vec<u8>, Vec<u8>) -> Vec<u8>;
    let spoil: [Spoil; 4] = [
        // A record sent twice.
        |one, _two| [one.clone(), one].concat(),
        // Two records in the wrong order.
        |one, two| [two, one].concat(),
        // A record left out.
        |_one, two| two,
        // A record cut short, with its length to match.
        |mut one, _two| {
            one.pop();
            one[4] -= 1;
            one
        },
    ];
    for spoil in spoil {
        let (mut client, mut server) = ours();
        let (mut one, mut two) = (Vec::new(), Vec::new());
        client.channel.send(b"one", &mut one).unwrap();
        client.channel.send(b"two", &mut two).unwrap();
        let error = server.receive(&mut spoil(one, two)).unwrap_err().to_string();
        assert!(error.contains("decrypt"), "{error}");
        let told = alert(&mut server, &mut client);
        assert!(told.contains("BadRecordMac"), "{told}");
    }
    let (mut client, _server) = ours();
    client.channel.send(b"for the server", &mut client.outgoing).unwrap();
    let mut mirrored = client.outgoing.clone();
    client.receive(&mut mirrored).unwrap_err();
    assert!(client.plaintext.is_empty());
}

#[test]
fn every_altered_bit_of_a_record_is_found() {
    let (mut client, mut server) = ours();
    client.channel.send(b"pay 1", &mut client.outgoing).unwrap();
    let record = std::mem::take(&mut client.outgoing);
    for bit in 0..record.len() * 8 {
        let mut altered = record.clone();
        altered[bit / 8] ^= 1 << (bit % 8);
        let receiving = &mut records(&mut server).receiving;
        let Some((header, sealed)) = altered.split_first_chunk_mut() else { panic!("no header") };
        assert!(receiving.open(*header, sealed).is_err(), "bit {bit} does not count");
        receiving.rewind();
    }
    server.receive(&mut record.clone()).unwrap();
    assert_eq!(server.plaintext, b"pay 1");
}

#[test]
fn headers_that_cannot_be_are_refused_before_their_record_is_waited_for() {
    for (header, error) in [
        ([22, 3, 3, 0, 40], "UnexpectedMessage"),
        ([21, 3, 3, 0, 2], "UnexpectedMessage"),
        ([20, 3, 3, 0, 1], "UnexpectedMessage"),
        ([b'G', b'E', b'T', b' ', b'/'], "UnexpectedMessage"),
        ([23, 3, 3, 0x41, 1], "excess record size"),
        ([23, 3, 3, 0xff, 0xff], "excess record size"),
    ] {
        let (_client, mut server) = ours();
        let found = server.receive(&mut header.to_vec()).unwrap_err().to_string();
        assert!(found.contains(error), "{header:?}: {found}");
    }
    for length in 0..17 {
        let (_client, mut server) = ours();
        let mut wire = vec![23, 3, 3, 0, length];
        wire.extend(vec![0; usize::from(length)]);
        server.receive(&mut wire).unwrap_err();
    }
}

#[test]
fn whatever_a_peer_utters_is_taken_or_refused() {
    let mut state = 1_u64;
    let mut random = move |below: u64| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        u8::try_from((state >> 33) % below).unwrap()
    };
    let (mut client, mut server) = ours();
    for _ in 0..2000 {
        let kind = ContentType::from([21, 22, 22, 22, 23][usize::from(random(5))]);
        let content: Vec<u8> =
            (0..random(12)).map(|_| [0, 1, 4, 24][usize::from(random(4))]).collect();
        utter(&mut server, kind, &content);
        if hear(&mut server, &mut client).is_err() || client.progress.closed {
            (client, server) = ours();
        }
    }
}

#[test]
fn an_idle_end_is_small() {
    // 640 and 112 bytes are size classes of jemalloc: anything larger takes the next one.
    assert!(size_of::<Keys>() <= 640, "{} bytes", size_of::<Keys>());
    assert!(size_of::<Records>() <= 112, "{} bytes", size_of::<Records>());
}
