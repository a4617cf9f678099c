//! The cluster's certificate authority: makes authorities and issues certificates.
//!
//! In: the authorities as the state holds them, a signing request, and for whom. Out: certificates. Decides nothing: who may have which
//! certificate is the caller's question. Of a signing request only the key counts, and that its sender holds it (RFC 2986 §3).

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use rand::Rng;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rcluster_api::cluster::Authority;
use rcluster_api::data::Payload;
use rcluster_api::identity::{Identity, LOCKED_NAME, MANAGER_NAME, Part};
use rcluster_api::wire::v1;
use thiserror::Error;

use crate::core::control::access::CLOCKS_DIFFER_MS;

/// How long an authority's certificate is valid: longer than the cluster; it is replaced by rotation.
const AUTHORITY_TTL: Duration = Duration::from_secs(20 * 365 * 86_400);
/// How far the clocks of two hosts may differ; less for certificates whose whole life is short.
const SKEW_MAX: Duration = Duration::from_millis(CLOCKS_DIFFER_MS);

/// An authority that cannot issue, or a request that cannot be answered.
#[derive(Debug, Error)]
pub enum CaError {
    #[error("the cluster has no certificate authority: it was made without TLS")]
    None,
    #[error("the signing request cannot be used")]
    Request(#[source] rcgen::Error),
    #[error("{0:?} cannot stand in a certificate")]
    Name(String),
    #[error("issue a certificate")]
    Issue(#[from] rcgen::Error),
}

fn base(common_name: &str, ttl: Duration) -> CertificateParams {
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.not_before = (now - SKEW_MAX.min(ttl / 10)).into();
    params.not_after = (now + ttl).into();
    params.serial_number = Some(SerialNumber::from_slice(&rand::rng().random::<[u8; 16]>()));
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = base(name, AUTHORITY_TTL);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn authority_name() -> String {
    format!("rcluster authority {}", rcluster_api::id::random_id(&mut rand::rng()))
}

/// A cluster's first authority.
pub fn found() -> Result<Authority, CaError> {
    let key = KeyPair::generate()?;
    let certificate = authority_params(&authority_name()).self_signed(&key)?;
    Ok(Authority {
        certificate: Payload(certificate.der().to_vec()),
        key: Payload(key.serialize_der()),
        cross: Payload::default(),
        retired_at_ms: 0,
    })
}

/// The authority that follows `before`: its own certificate, and one by `before` for those who do not know it yet.
pub fn succeed(before: &Authority) -> Result<Authority, CaError> {
    let key = KeyPair::generate()?;
    let name = authority_name();
    let certificate = authority_params(&name).self_signed(&key)?;
    let cross = authority_params(&name).signed_by(&key, &issuer(before)?)?;
    Ok(Authority {
        certificate: Payload(certificate.der().to_vec()),
        key: Payload(key.serialize_der()),
        cross: Payload(cross.der().to_vec()),
        retired_at_ms: 0,
    })
}

fn issuer(authority: &Authority) -> Result<Issuer<'static, KeyPair>, CaError> {
    let key = KeyPair::try_from(authority.key.0.as_slice())?;
    Ok(Issuer::from_ca_cert_der(&authority.certificate.0.as_slice().into(), key)?)
}

/// A certificate for `identity`'s key. `hosts`: names and addresses at which a manager is reached, for people's tools.
pub fn issue(
    authorities: &[Authority],
    identity: &Identity,
    hosts: &[&str],
    request: &[u8],
    ttl: Duration,
) -> Result<v1::Credentials, CaError> {
    let mut params = leaf(&identity.id, identity.part.as_str(), &identity.cluster_id, ttl);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    if identity.part == Part::Manager {
        params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        params.subject_alt_names = [MANAGER_NAME].iter().chain(hosts).map(|host| san(host)).collect::<Result<_, _>>()?;
    }
    sign(authorities, params, request)
}

/// A certificate for a manager while it is locked: nobody takes it for a manager's or lets its holder in. It is valid as long as an
/// authority's: a manager may be off for long.
pub fn issue_door(authorities: &[Authority], cluster_id: &str, manager: &str, request: &[u8]) -> Result<v1::Credentials, CaError> {
    let mut params = leaf(manager, "locked manager", cluster_id, AUTHORITY_TTL);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.subject_alt_names = vec![san(LOCKED_NAME)?];
    sign(authorities, params, request)
}

fn leaf(id: &str, part: &str, cluster_id: &str, ttl: Duration) -> CertificateParams {
    let mut params = base(id, ttl);
    params.distinguished_name.push(DnType::OrganizationalUnitName, part);
    params.distinguished_name.push(DnType::OrganizationName, cluster_id);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

fn sign(authorities: &[Authority], params: CertificateParams, request: &[u8]) -> Result<v1::Credentials, CaError> {
    let authority = authorities.first().ok_or(CaError::None)?;
    // Checks the request's signature: the sender holds the key.
    let mut request = CertificateSigningRequestParams::from_der(&request.into()).map_err(CaError::Request)?;
    request.params = params;
    let certificate = request.signed_by(&issuer(authority)?)?;
    let mut chain = vec![certificate.der().to_vec()];
    // From the newest to the oldest: who trusts any of them finds a way to it.
    for authority in authorities {
        chain.push(authority.certificate.0.clone());
        chain.extend((!authority.cross.0.is_empty()).then(|| authority.cross.0.clone()));
    }
    Ok(v1::Credentials { chain, authorities: trusted(authorities) })
}

/// Refuses a signing request that [`issue`] would refuse.
pub fn check_request(request: &[u8]) -> Result<(), CaError> {
    CertificateSigningRequestParams::from_der(&request.into()).map(|_| ()).map_err(CaError::Request)
}

/// The certificates of `authorities`.
pub fn trusted(authorities: &[Authority]) -> Vec<Vec<u8>> {
    authorities.iter().map(|authority| authority.certificate.0.clone()).collect()
}

fn san(host: &str) -> Result<SanType, CaError> {
    match host.parse::<IpAddr>() {
        Ok(address) => Ok(SanType::IpAddress(address)),
        Err(_) => Ok(SanType::DnsName(host.to_owned().try_into().map_err(|_| CaError::Name(host.to_owned()))?)),
    }
}

/// The host of `HOST:PORT`.
pub fn host(addr: &str) -> &str {
    addr.rsplit_once(':').map_or(addr, |(host, _)| host).trim_matches(['[', ']'])
}

#[cfg(test)]
mod tests {
    use rcluster_api::identity;
    use rcluster_api::tls::{Credentials, SigningRequest};

    use super::*;

    fn manager() -> Identity {
        Identity { part: Part::Manager, id: "m".into(), cluster_id: "c".into() }
    }

    fn credentials(authorities: &[Authority]) -> Credentials {
        let request = SigningRequest::new().unwrap();
        let issued = issue(authorities, &manager(), &["m1", "127.0.0.1"], &request.request, Duration::from_secs(60)).unwrap();
        Credentials::new(issued, request.key)
    }

    #[test]
    fn a_certificate_says_whose_it_is_and_who_issued_it() {
        let old = found().unwrap();
        let new = succeed(&old).unwrap();
        let first = credentials(std::slice::from_ref(&old));
        assert_eq!(first.certificate().unwrap().identity, manager());
        assert!(first.is_current());
        let second = credentials(&[new.clone(), old.clone()]);
        assert!(second.is_current() && identity::is_issued_by(&new.cross.0, &old.certificate.0));
        assert!(!Credentials { authorities: second.authorities.clone(), ..first }.is_current());
    }

    #[test]
    fn a_certificate_is_renewed_in_the_middle_of_its_life() {
        let authority = [found().unwrap()];
        for seconds in [60, 900, 90 * 86_400] {
            let request = SigningRequest::new().unwrap();
            let issued = issue(&authority, &manager(), &[], &request.request, Duration::from_secs(seconds)).unwrap();
            let certificate = Credentials::new(issued, request.key).certificate().unwrap();
            let (now, ttl) = (i64::try_from(rcluster_base::clock::unix_ms() / 1000).unwrap(), i64::try_from(seconds).unwrap());
            let wait = certificate.renew_at() - now;
            assert!(wait >= ttl * 2 / 5 && wait <= ttl * 3 / 4, "{wait} s of {ttl} s");
        }
    }

    #[test]
    fn a_request_that_was_tampered_with_is_refused() {
        let authority = [found().unwrap()];
        let mut request = SigningRequest::new().unwrap().request;
        let last = request.len() - 1;
        request[last] ^= 1;
        for wrong in [&request[..], &[], &[0x30; 40]] {
            let refused = issue(&authority, &manager(), &[], wrong, Duration::from_secs(60)).unwrap_err();
            assert!(matches!(refused, CaError::Request(_)), "{refused:?}");
        }
    }
}
