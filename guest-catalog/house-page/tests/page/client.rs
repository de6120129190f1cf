//! The program, started, and what a browser does with it.
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};
use std::fs;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tungstenite::WebSocket;
use tungstenite::client::IntoClientRequest as _;

pub type Tls = StreamOwned<ClientConnection, TcpStream>;

/// As long as any answer may take here.
pub const LIMIT: Duration = Duration::from_secs(30);

pub const GUESTS: &str = r#"#!/bin/sh
case "$*" in
  "list --json") echo '[{"name":"tiny","description":"<b>small</b>","state":"up","domain-id":1,"memory-mib":128},{"name":"pc","state":"up"}]' ;;
  "start tiny") echo 'guest `tiny` is up in mode pv' ;;
  "stop tiny --now") echo 'guest `tiny` is stopped' ;;
  "start nobody") echo 'error: no guest is called `nobody`' >&2; exit 1 ;;
  "start slow") sleep 60 ;;
  "attach tiny") printf 'tiny login: '; while read -r line; do [ "$line" = end ] && break; printf 'you said %s\r\n' "$line"; done
    echo 'error: the guest is gone' >&2; exit 1 ;;
  *) echo "error: $*" >&2; exit 2 ;;
esac
"#;

pub struct Page {
    pub dir: tempfile::TempDir,
    pub child: Child,
    pub port: u16,
    pub token: String,
}

impl Drop for Page {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Page {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let guests = dir.path().join("guests");
        fs::write(&guests, GUESTS).unwrap();
        fs::set_permissions(&guests, fs::Permissions::from_mode(0o755)).unwrap();
        let vendor = dir.path().join("usr/share/novnc/core");
        fs::create_dir_all(&vendor).unwrap();
        fs::write(vendor.join("rfb.js"), "export default 1;\n").unwrap();
        fs::write(dir.path().join("usr/share/secret.js"), "secret\n").unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_house-page"))
            .args(["serve", "--local-port", "0", "--config", "/nonexistent"])
            .arg("--run")
            .arg(dir.path().join("run"))
            .arg("--guests")
            .arg(&guests)
            .arg("--root")
            .arg(dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = lines.next().unwrap().unwrap();
        let port = said.rsplit(':').next().unwrap().parse().unwrap();
        std::thread::spawn(move || lines.for_each(drop));
        let token = fs::read_to_string(dir.path().join("run/page/token")).unwrap();
        Self {
            dir,
            child,
            port,
            token,
        }
    }

    pub fn tcp(&self) -> TcpStream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream
    }

    pub fn tls(&self) -> Tls {
        let certificate = fs::read(self.dir.path().join("run/page/certificate.der")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned(certificate)))
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let tls = ClientConnection::new(Arc::new(config), name).unwrap();
        StreamOwned::new(tls, self.tcp())
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub fn origin(&self) -> String {
        format!("Origin: https://{}", self.host())
    }

    /// One request on a connection of its own.
    pub fn ask(&self, line: &str, headers: &[&str], body: &str) -> Answer {
        let mut tls = self.tls();
        let mut text = format!(
            "{line} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n",
            self.host()
        );
        for header in headers {
            text += &format!("{header}\r\n");
        }
        if !body.is_empty() {
            text += &format!(
                "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n",
                body.len()
            );
        }
        // An early refusal may close the connection before all is sent: its answer counts.
        let _ = tls.write_all(format!("{text}\r\n{body}").as_bytes());
        Answer::read(&mut tls)
    }

    pub fn try_token(&self, token: &str) -> Answer {
        let body = format!("token={}", token.replace(' ', "+"));
        self.ask("POST /login", &[&self.origin()], &body)
    }

    /// A header with the cookie of a new session.
    pub fn log_in(&self) -> String {
        let answer = self.try_token(&self.token);
        assert_eq!(answer.status, 303, "{}", answer.head);
        let cookie = answer.header("set-cookie").unwrap();
        for part in ["; Secure", "; HttpOnly", "; SameSite=Strict", "; Path=/"] {
            assert!(cookie.contains(part), "{cookie}");
        }
        format!("Cookie: {}", cookie.split(';').next().unwrap())
    }

    pub fn socket(&self, path: &str, cookie: &str, origin: &str) -> Result<WebSocket<Tls>, u16> {
        let mut request = format!("wss://{}{path}", self.host())
            .into_client_request()
            .unwrap();
        let headers = request.headers_mut();
        for line in [cookie, origin] {
            if let Some((name, value)) = line.split_once(": ") {
                let name: tungstenite::http::HeaderName = name.parse().unwrap();
                headers.insert(name, value.parse().unwrap());
            }
        }
        match tungstenite::client(request, self.tls()) {
            Ok((socket, _)) => Ok(socket),
            Err(tungstenite::HandshakeError::Failure(tungstenite::Error::Http(answer))) => {
                Err(answer.status().as_u16())
            }
            Err(error) => panic!("{path}: {error}"),
        }
    }
}

pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn read(stream: &mut impl Read) -> Self {
        let mut bytes = Vec::new();
        // The end of TLS is not always said politely; what came counts.
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|status| status.parse().ok());
        Self {
            status: status.unwrap_or(0),
            head: head.to_owned(),
            body: body.to_owned(),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    }
}

/// Takes the one certificate whose bytes are known, as people compare its fingerprint.
#[derive(Debug)]
pub struct Pinned(Vec<u8>);

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        found: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        assert_eq!(found.as_ref(), self.0, "another certificate");
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        panic!("TLS 1.2 is not offered")
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = rustls::crypto::ring::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
