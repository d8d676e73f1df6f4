//! The decoder reads what the encoder writes, however it is cut, and survives anything else.

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::frame::{Control, data_header};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Open(SocketAddr),
    Data(Vec<u8>),
    End,
    Reset(ResetReason),
}

fn written(said: &[Said]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for item in said {
        match item {
            Said::Open(client) => bytes.extend(Control::open(*client).as_bytes()),
            Said::Data(data) => {
                bytes.extend(data_header(data.len()).unwrap());
                bytes.extend(data);
            }
            Said::End => bytes.extend(Control::end().as_bytes()),
            Said::Reset(reason) => bytes.extend(Control::reset(*reason).as_bytes()),
        }
    }
    bytes
}

/// Decodes in pieces of `step` bytes and joins adjacent data events, whose boundaries carry no meaning.
fn read(bytes: &[u8], step: usize) -> Result<Vec<Said>, ProtocolError> {
    let mut decoder = Decoder::default();
    let mut said = Vec::new();
    for mut piece in bytes.chunks(step) {
        while let Some(event) = decoder.next(&mut piece)? {
            match (event, said.last_mut()) {
                (Event::Data(data), Some(Said::Data(before))) => before.extend(data),
                (Event::Data(data), _) => said.push(Said::Data(data.to_vec())),
                (Event::Open(client), _) => said.push(Said::Open(client)),
                (Event::End, _) => said.push(Said::End),
                (Event::Reset(reason), _) => said.push(Said::Reset(reason)),
            }
        }
    }
    assert!(decoder.is_between_frames() || !bytes.is_empty());
    Ok(said)
}

fn client() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| (ip, port).into()),
        (any::<[u8; 16]>(), any::<u16>()).prop_map(|(ip, port)| (ip, port).into()),
    ]
}

fn stream() -> impl Strategy<Value = Vec<Said>> {
    let data = vec(any::<u8>(), 1..300).prop_map(Said::Data);
    let end = prop_oneof![Just(Said::End), Just(Said::Reset(ResetReason::Denied))];
    (client(), data, end).prop_map(|(client, data, end)| vec![Said::Open(client), data, end])
}

proptest! {
    #[test]
    fn what_was_written_is_read_however_it_is_cut(streams in vec(stream(), 1..5), step in 1_usize..64) {
        let said: Vec<Said> = streams.into_iter().flatten().collect();
        prop_assert_eq!(read(&written(&said), step), Ok(said));
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in vec(any::<u8>(), 0..400), step in 1_usize..64) {
        drop(read(&bytes, step));
    }
}

#[test]
fn control_frames_of_a_wrong_length_are_refused() {
    for bytes in [
        &[1, 0, 0, 8][..],
        &[3, 0, 0, 1],
        &[4, 0, 0, 0],
        &[4, 0, 1, 0],
        &[0, 0, 0, 0],
        &[9, 0, 0, 0],
    ] {
        assert!(read(bytes, 64).is_err(), "{bytes:?}");
    }
    assert_eq!(
        read(&[1, 0, 0, 7, 6, 0, 0, 0, 0, 0, 0], 64),
        Err(ProtocolError::Length { frame: FrameType::Open, length: 7 })
    );
    assert_eq!(read(&[1, 0, 0, 7, 5, 0, 0, 0, 0, 0, 0], 64), Err(ProtocolError::Family(5)));
}

#[test]
fn an_empty_data_frame_says_nothing() {
    assert_eq!(read(&[2, 0, 0, 0, 3, 0, 0, 0], 64), Ok(vec![Said::End]));
}
