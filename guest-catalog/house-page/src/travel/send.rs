//! `house-page send`: the near end of a journey. `xl migrate` runs it as the command that leads to the other house.
use super::{
    Answer, GREETING_LIMIT, LABEL, PORT, PROOF_BYTES, Request, Role, TravelError, VERSION, key_of,
    read_message, read_proof, tame, watch_over, write_message, write_proof,
};
use clap::Args;
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use std::io;
use std::os::fd::AsFd as _;
use std::sync::Arc;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::net::unix::pipe;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// The environment variable with the code: arguments are for everybody to see.
const CODE: &str = "GASTHAUS_CODE";

#[derive(Args)]
pub struct Send {
    /// Address or name of the other house
    house: String,
    /// The guest's name
    guest: String,
    /// The mode it runs in
    mode: String,
    /// SHA-256 of its configuration
    config_sha256: String,
    /// The other house's port
    #[arg(long, default_value_t = PORT)]
    port: u16,
}

/// Joins standard input and output with the program that takes the guest in at the other house.
///
/// # Errors
/// When the other house is not there, is not the one that showed the code, refuses, or goes away.
pub async fn send(journey: &Send) -> Result<(), TravelError> {
    let code = std::env::var(CODE).map_err(|_| TravelError::NoCode(CODE))?;
    let house = &journey.house;
    let greeting = tokio::time::timeout(GREETING_LIMIT, greet(journey, &code));
    let line = greeting.await.map_err(|_| TravelError::Silent {
        house: house.clone(),
    })??;
    let own = |source| TravelError::Own {
        attempt: "use standard input and output as pipes",
        source,
    };
    let input = io::stdin().as_fd().try_clone_to_owned().map_err(own)?;
    let output = io::stdout().as_fd().try_clone_to_owned().map_err(own)?;
    let mut input = pipe::Receiver::from_owned_fd(input).map_err(own)?;
    let mut output = pipe::Sender::from_owned_fd(output).map_err(own)?;
    let (mut from_line, mut to_line) = tokio::io::split(line);
    let outward = async {
        // What goes wrong on this way ends the other one, too.
        let _ = tokio::io::copy(&mut input, &mut to_line).await;
        let _ = to_line.shutdown().await;
        std::future::pending().await
    };
    // When the other house has ended there is nobody left to listen, whatever `xl` still has to say.
    let inward = tokio::select! {
        inward = tokio::io::copy(&mut from_line, &mut output) => inward,
        never = outward => never,
    };
    inward.map(drop).map_err(|source| TravelError::Line {
        house: house.clone(),
        source,
    })
}

async fn greet(journey: &Send, code: &str) -> Result<TlsStream<TcpStream>, TravelError> {
    let house = &journey.house;
    let broke = |source| TravelError::Line {
        house: house.clone(),
        source,
    };
    let stream = TcpStream::connect((house.as_str(), journey.port))
        .await
        .map_err(|source| TravelError::Unreachable {
            house: format!("{house} port {}", journey.port),
            source,
        })?;
    watch_over(&stream);
    let name = ServerName::try_from("gasthaus").map_err(|error| broke(io::Error::other(error)))?;
    let config = config().map_err(|error| broke(io::Error::other(error)))?;
    let mut line = TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
        .map_err(|source| TravelError::Handshake {
            house: house.clone(),
            source,
        })?;
    let material = line
        .get_ref()
        .1
        .export_keying_material([0; PROOF_BYTES], LABEL, None)
        .map_err(|error| broke(io::Error::other(error)))?;
    let key = key_of(code);
    write_proof(&mut line, &key, Role::Source, &material)
        .await
        .map_err(broke)?;
    // Who does not know the code hangs up on us, or says something else: either way it learns nothing of the guest.
    let knows = match read_proof(&mut line, &key, Role::Target, &material).await {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => return Err(broke(error)),
        proof => proof.unwrap_or(false),
    };
    if !knows {
        return Err(TravelError::Code {
            house: house.clone(),
        });
    }
    let request = Request {
        version: VERSION,
        guest: journey.guest.clone(),
        mode: journey.mode.clone(),
        config_sha256: journey.config_sha256.clone(),
    };
    write_message(&mut line, &request).await.map_err(broke)?;
    let answer: Answer = read_message(&mut line).await.map_err(broke)?;
    match answer.refused {
        None => Ok(line),
        Some(why) => Err(TravelError::Refused {
            house: house.clone(),
            why: tame(&why),
        }),
    }
}

fn config() -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyHouse(provider)))
        .with_no_client_auth();
    Ok(config)
}

/// Every certificate will do, if its owner signs with it: who the other end is, the code proves, on the keys of this connection.
#[derive(Debug)]
struct AnyHouse(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyHouse {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General(
            "TLS 1.3 alone is spoken here".into(),
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
