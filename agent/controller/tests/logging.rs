//! What the controller logs. The only test of its file, because the log belongs to the whole
//! process.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails says where")]

#[expect(dead_code, reason = "the other tests need more of it")]
mod support;

use std::{
    io,
    sync::{Arc, Mutex},
};

use support::{Ask, CART, ONE, Setup, WEB};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_refusal_is_logged_with_who_what_and_why() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).init();
    let controller = Setup::default().start().await;
    let client = controller.client().await;
    client.ask(&Ask::new(ONE, CART)).await.unwrap_err();
    client.ask(&Ask::new("no such token", CART)).await.unwrap_err();
    client.ask(&Ask::new(ONE, WEB)).await.unwrap();
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let line = |needle: &str| text.lines().find(|line| line.contains(needle)).unwrap().to_owned();
    let refused = line("pod-on-callers-node");
    for part in [
        "WARN",
        "refused a certificate",
        "node=\"one\"",
        "caller=\"agent of one\"",
        CART,
        "peer=\"127.0.0.1:",
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    assert!(line("caller-token").contains("WARN"));
    let issued = line(" issued");
    assert!(issued.contains(WEB) && issued.contains("serial="), "{issued}");
    assert!(!text.contains(ONE) && !text.contains("no such token"), "a token was logged");
}
