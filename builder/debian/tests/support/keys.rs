//! OpenPGP keys for the tests, Ed25519, from fixed seeds.

use pgp::composed::{
    CleartextSignedMessage, DetachedSignature, KeyType, SecretKeyParamsBuilder, SignedPublicKey,
    SignedSecretKey, SubkeyParamsBuilder,
};
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{KeyFlags, SignatureConfig, SignatureType, Subpacket, SubpacketData};
use pgp::types::{Duration, KeyDetails, Password, Tag, Timestamp};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::now_epoch_secs;

/// A primary key that may sign, with one subkey that may sign.
pub fn generate(seed: u64) -> SignedSecretKey {
    let mut sub = SubkeyParamsBuilder::default();
    sub.key_type(KeyType::Ed25519Legacy).can_sign(true);
    let mut params = SecretKeyParamsBuilder::default();
    params
        .key_type(KeyType::Ed25519Legacy)
        .can_certify(true)
        .can_sign(true)
        .created_at(Timestamp::from_secs(1_600_000_000))
        .primary_user_id(format!("Test {seed} <test@example.invalid>"))
        .subkeys(vec![sub.build().unwrap()]);
    params
        .build()
        .unwrap()
        .generate(ChaCha8Rng::seed_from_u64(seed))
        .unwrap()
}

/// An RSA key: Ed25519 refuses to sign weak hashes at all.
pub fn generate_rsa(seed: u64) -> SignedSecretKey {
    let mut params = SecretKeyParamsBuilder::default();
    params
        .key_type(KeyType::Rsa(2048))
        .can_certify(true)
        .can_sign(true)
        .created_at(Timestamp::from_secs(1_600_000_000))
        .primary_user_id(format!("Test {seed} <test@example.invalid>"));
    params
        .build()
        .unwrap()
        .generate(ChaCha8Rng::seed_from_u64(seed))
        .unwrap()
}

/// What a signature is made like.
pub struct Manner {
    pub hash: HashAlgorithm,
    pub created_epoch_secs: u64,
    pub lifetime_secs: Option<u32>,
    pub typ: SignatureType,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            hash: HashAlgorithm::Sha256,
            created_epoch_secs: now_epoch_secs(),
            lifetime_secs: None,
            typ: SignatureType::Text,
        }
    }
}

fn config(key: &impl KeyDetails, manner: &Manner, more: Vec<SubpacketData>) -> SignatureConfig {
    let mut config = SignatureConfig::v4(manner.typ, key.algorithm(), manner.hash);
    let created = Timestamp::from_secs(manner.created_epoch_secs as u32);
    let mut data = vec![
        SubpacketData::SignatureCreationTime(created),
        SubpacketData::IssuerFingerprint(key.fingerprint()),
    ];
    data.extend(
        manner
            .lifetime_secs
            .map(|secs| SubpacketData::SignatureExpirationTime(Duration::from_secs(secs))),
    );
    data.extend(more);
    config.hashed_subpackets = data
        .into_iter()
        .map(|d| Subpacket::regular(d).unwrap())
        .collect();
    config
}

/// `text` in the cleartext framework, signed by every one of `keys`.
pub fn sign(text: &str, keys: &[&SignedSecretKey]) -> String {
    let signer = |normal: &str| {
        let one = |key: &&SignedSecretKey| {
            config(&key.primary_key, &Manner::default(), vec![]).sign(
                &key.primary_key,
                &Password::empty(),
                normal.as_bytes(),
            )
        };
        keys.iter().map(one).collect()
    };
    armored(CleartextSignedMessage::new_many(text, signer).unwrap())
}

/// `text` signed by the primary key of `key` in an unusual manner.
pub fn sign_like(text: &str, key: &SignedSecretKey, manner: &Manner) -> String {
    let config = config(&key.primary_key, manner, vec![]);
    armored(
        CleartextSignedMessage::new(text, config, &key.primary_key, &Password::empty()).unwrap(),
    )
}

/// `text` signed by the subkey of `key`.
pub fn sign_by_subkey(text: &str, key: &SignedSecretKey) -> String {
    let sub = &key.secret_subkeys[0].key;
    let config = config(sub, &Manner::default(), vec![]);
    armored(CleartextSignedMessage::new(text, config, sub, &Password::empty()).unwrap())
}

/// The signature of `key` for `text`, by itself.
pub fn detached(text: &str, key: &SignedSecretKey, manner: &Manner) -> DetachedSignature {
    let signature = config(&key.primary_key, manner, vec![]).sign(
        &key.primary_key,
        &Password::empty(),
        text.as_bytes(),
    );
    DetachedSignature::new(signature.unwrap())
}

fn armored(message: CleartextSignedMessage) -> String {
    message.to_armored_string(Default::default()).unwrap()
}

/// The certificate of `key`.
pub fn public(key: &SignedSecretKey) -> SignedPublicKey {
    key.to_public_key()
}

/// The certificate of `key`, revoked by itself.
pub fn revoked(key: &SignedSecretKey) -> SignedPublicKey {
    let manner = Manner {
        typ: SignatureType::KeyRevocation,
        ..Manner::default()
    };
    let signature = config(&key.primary_key, &manner, vec![])
        .sign_key(
            &key.primary_key,
            &Password::empty(),
            key.primary_key.public_key(),
        )
        .unwrap();
    let mut certificate = public(key);
    certificate.details.revocation_signatures.push(signature);
    certificate
}

/// The certificate of `key` with one self-signature only, made with `hash`, that sets a lifetime and leaves or takes the
/// right to sign.
pub fn self_signed(
    key: &SignedSecretKey,
    hash: HashAlgorithm,
    lifetime_secs: u32,
    may_sign: bool,
) -> SignedPublicKey {
    let mut flags = KeyFlags::default();
    flags.set_certify(true);
    flags.set_sign(may_sign);
    let manner = Manner {
        typ: SignatureType::CertPositive,
        hash,
        ..Manner::default()
    };
    let more = vec![
        SubpacketData::KeyFlags(flags),
        SubpacketData::KeyExpirationTime(Duration::from_secs(lifetime_secs)),
    ];
    let mut certificate = public(key);
    let id = certificate.details.users[0].id.clone();
    let signature = config(&key.primary_key, &manner, more)
        .sign_certification(
            &key.primary_key,
            key.primary_key.public_key(),
            &Password::empty(),
            Tag::UserId,
            &id,
        )
        .unwrap();
    certificate.details.users[0].signatures = vec![signature];
    certificate.details.direct_signatures.clear();
    certificate
}
