//! One document: its envelope, its selector, and a `PeerAuthentication`'s modes.

use std::{collections::BTreeMap, sync::Arc};

use serde_saphyr::{Location, Spanned};

use super::{
    Place, Problem, ReadError,
    document::{Document, Metadata, MutualTls, Pairs, Selector, Spec as Written},
    rule, value,
};
use crate::{
    Finding, MtlsMode, ObjectId, ObjectKind, PolicyObject, Severity,
    finding::Meaning,
    object::{Authorization, Labels, PeerAuthentication, Spec},
};

/// What every refusal and finding within one object needs to name.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) id: ObjectId,
    origin: Arc<str>,
    findings: Vec<Finding>,
}

/// Appends the object of a document, or those of a list.
pub(super) fn read_document(
    origin: &Arc<str>,
    document: Document,
    into: &mut Vec<PolicyObject>,
) -> Result<(), ReadError> {
    let start = document.kind.as_ref().map_or(Location::UNKNOWN, |kind| kind.referenced);
    let of_kind = match document.kind.as_ref().map_or("", |kind| kind.value.as_str()) {
        "List" => None,
        "AuthorizationPolicyList" => Some(ObjectKind::AuthorizationPolicy),
        "PeerAuthenticationList" => Some(ObjectKind::PeerAuthentication),
        "PeerAuthentication" => {
            into.push(read_object(origin, ObjectKind::PeerAuthentication, document, start)?);
            return Ok(());
        }
        _ => {
            into.push(read_object(origin, ObjectKind::AuthorizationPolicy, document, start)?);
            return Ok(());
        }
    };
    if document.spec.is_some() {
        return Err(ReadError::Content {
            place: Place::at(origin, start),
            field: "spec".to_owned(),
            problem: Problem::SpecOfList,
        });
    }
    for item in document.items.into_iter().flatten() {
        match of_kind {
            None => read_document(origin, item.value, into)?,
            // Items of a typed list have its kind, whether they repeat it or not.
            Some(kind) => into.push(read_object(origin, kind, item.value, item.referenced)?),
        }
    }
    Ok(())
}

fn read_object(
    origin: &Arc<str>,
    kind: ObjectKind,
    document: Document,
    start: Location,
) -> Result<PolicyObject, ReadError> {
    let place = Place::at(origin, start);
    let said = document.kind.as_ref().map(|kind| kind.value.as_str());
    let (field, problem) = match said {
        Some(said) if said != kind.to_string() => ("kind", Some(Problem::NotOfList(kind))),
        _ if document.items.is_some() => ("items", Some(Problem::ForeignField(kind))),
        _ => ("", None),
    };
    if let Some(problem) = problem {
        return Err(ReadError::Content { place, field: field.to_owned(), problem });
    }
    let metadata = document.metadata.ok_or_else(|| ReadError::Content {
        place: place.clone(),
        field: "metadata".to_owned(),
        problem: Problem::Missing,
    })?;
    let mut context = Context {
        id: read_id(origin, kind, &metadata)?,
        origin: Arc::clone(origin),
        findings: Vec::new(),
    };
    let created = read_time(&context, metadata.value.creation_timestamp.as_ref())?;
    let spec = document.spec.unwrap_or_default();
    let spec = match kind {
        ObjectKind::AuthorizationPolicy => {
            let dry_run = read_dry_run(&mut context, &metadata.value)?;
            read_authorization(&mut context, spec, &place, dry_run)?
        }
        ObjectKind::PeerAuthentication => read_peer_authentication(&context, spec)?,
    };
    Ok(PolicyObject { id: context.id, place, created, spec, findings: context.findings })
}

fn read_id(
    origin: &Arc<str>,
    kind: ObjectKind,
    metadata: &Spanned<Metadata>,
) -> Result<ObjectId, ReadError> {
    let read = |field: &str, text: Option<&Spanned<String>>, dots: bool| {
        let (problem, at) = match text {
            None => (Problem::Missing, metadata.referenced),
            Some(text) if value::is_name(&text.value, dots) => {
                return Ok(text.value.as_str().into());
            }
            Some(text) => (Problem::NotAName(text.value.clone()), text.referenced),
        };
        Err(ReadError::Content {
            place: Place::at(origin, at),
            field: format!("metadata.{field}"),
            problem,
        })
    };
    Ok(ObjectId {
        kind,
        name: read("name", metadata.value.name.as_ref(), true)?,
        // Kubernetes would take the namespace of the current context; a file has no context.
        namespace: read("namespace", metadata.value.namespace.as_ref(), false)?,
    })
}

fn read_time(
    context: &Context,
    time: Option<&Spanned<String>>,
) -> Result<Option<Arc<str>>, ReadError> {
    const FORM: &[u8] = b"0000-00-00T00:00:00Z";
    let Some(time) = time else { return Ok(None) };
    let same =
        |(byte, form): (u8, &u8)| if *form == b'0' { byte.is_ascii_digit() } else { byte == *form };
    if time.value.len() == FORM.len() && time.value.bytes().zip(FORM).all(same) {
        return Ok(Some(time.value.as_str().into()));
    }
    let problem = Problem::NotATime(time.value.clone());
    Err(context.refuse(time.referenced, "metadata.creationTimestamp", problem))
}

/// Reads the annotation as Istio does, which uses Go's `strconv.ParseBool`.
fn read_dry_run(context: &mut Context, metadata: &Metadata) -> Result<bool, ReadError> {
    const FIELD: &str = "metadata.annotations";
    let annotation =
        metadata.annotations.as_ref().and_then(|annotations| annotations.dry_run.as_ref());
    let Some(text) = annotation else { return Ok(false) };
    match text.value.as_str() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => {
            context.remark(text.referenced, FIELD, Severity::Warning, Meaning::DryRun);
            Ok(true)
        }
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => {
            Err(context.refuse(text.referenced, FIELD, Problem::NotABoolean(other.to_owned())))
        }
    }
}

fn read_authorization(
    context: &mut Context,
    spec: Written,
    place: &Place,
    dry_run: bool,
) -> Result<Spec, ReadError> {
    let Written {
        selector,
        mtls,
        port_level_mtls,
        action,
        rules,
        target_ref,
        target_refs,
        provider,
    } = spec;
    let foreign = [
        ("spec.mtls", mtls.map(|field| field.referenced)),
        ("spec.portLevelMtls", port_level_mtls.map(|field| field.referenced)),
    ];
    context.refuse_foreign(&foreign)?;
    if let Some(at) = target_ref
        .map(|target| target.referenced)
        .or(target_refs.filter(|list| !list.value.is_empty()).map(|list| list.referenced))
    {
        return Err(context.refuse(at, "spec.targetRefs", Problem::TargetRefs));
    }
    let action = value::action(context, action.as_ref())?;
    // Only CUSTOM has a provider.
    context.refuse_foreign(&[("spec.provider", provider.map(|field| field.referenced))])?;
    Ok(Spec::Authorization(Arc::new(Authorization {
        name: format!("{}/{}", context.id.namespace, context.id.name).into(),
        selector: read_selector(context, selector)?,
        action,
        dry_run,
        rules: rule::read_rules(context, rules, action, place)?,
    })))
}

fn read_peer_authentication(context: &Context, spec: Written) -> Result<Spec, ReadError> {
    let Written {
        selector,
        mtls,
        port_level_mtls,
        action,
        rules,
        target_ref,
        target_refs,
        provider,
    } = spec;
    context.refuse_foreign(&[
        ("spec.action", action.map(|field| field.referenced)),
        ("spec.rules", rules.map(|field| field.referenced)),
        ("spec.targetRef", target_ref.map(|field| field.referenced)),
        ("spec.targetRefs", target_refs.map(|field| field.referenced)),
        ("spec.provider", provider.map(|field| field.referenced)),
    ])?;
    let selector = read_selector(context, selector)?;
    if let Some(ports) = &port_level_mtls
        && selector.is_empty()
        && !ports.value.0.is_empty()
    {
        return Err(context.refuse(
            ports.referenced,
            "spec.portLevelMtls",
            Problem::PortsWithoutSelector,
        ));
    }
    Ok(Spec::PeerAuthentication(Arc::new(PeerAuthentication {
        selector,
        mode: read_mode(context, mtls.map(|mtls| mtls.value).as_ref(), "spec.mtls.mode")?,
        ports: read_ports(context, port_level_mtls.map(|ports| ports.value))?,
    })))
}

fn read_ports(
    context: &Context,
    ports: Option<Pairs<Option<MutualTls>>>,
) -> Result<BTreeMap<u16, Option<MtlsMode>>, ReadError> {
    let mut read = BTreeMap::new();
    for (key, mtls) in ports.into_iter().flat_map(|pairs| pairs.0) {
        let refuse = |problem| context.refuse(key.referenced, "spec.portLevelMtls", problem);
        let port = value::port(&key.value).map_err(refuse)?;
        let mode = read_mode(context, mtls.as_ref(), &format!("spec.portLevelMtls[{port}].mode"))?;
        if read.insert(port, mode).is_some() {
            return Err(refuse(Problem::PortTwice(port)));
        }
    }
    Ok(read)
}

fn read_mode(
    context: &Context,
    mtls: Option<&MutualTls>,
    field: &str,
) -> Result<Option<MtlsMode>, ReadError> {
    let Some(mode) = mtls.and_then(|mtls| mtls.mode.as_ref()) else { return Ok(None) };
    match mode.value.as_str() {
        "UNSET" => Ok(None),
        "STRICT" => Ok(Some(MtlsMode::Strict)),
        "PERMISSIVE" => Ok(Some(MtlsMode::Permissive)),
        "DISABLE" => Ok(Some(MtlsMode::Disable)),
        other => Err(context.refuse(mode.referenced, field, Problem::Mode(other.to_owned()))),
    }
}

fn read_selector(
    context: &Context,
    selector: Option<Spanned<Selector>>,
) -> Result<Labels, ReadError> {
    let mut labels = Labels::new();
    let pairs = selector.and_then(|selector| selector.value.match_labels);
    for (key, label) in pairs.into_iter().flat_map(|pairs| pairs.0) {
        if key.value.is_empty() || key.value.contains('*') || label.contains('*') {
            let problem = Problem::Label(format!("{}: {label}", key.value));
            return Err(context.refuse(key.referenced, "spec.selector.matchLabels", problem));
        }
        labels.insert(key.value, label);
    }
    Ok(labels)
}

// === impl Context ===

impl Context {
    pub(super) fn refuse(&self, at: Location, field: &str, problem: Problem) -> ReadError {
        ReadError::Content { place: Place::at(&self.origin, at), field: field.to_owned(), problem }
    }

    pub(super) fn remark(
        &mut self,
        at: Location,
        field: &str,
        severity: Severity,
        meaning: Meaning,
    ) {
        self.remark_at(Place::at(&self.origin, at), field, severity, meaning);
    }

    pub(super) fn remark_at(
        &mut self,
        place: Place,
        field: &str,
        severity: Severity,
        meaning: Meaning,
    ) {
        let (object, field) = (self.id.clone(), field.to_owned());
        self.findings.push(Finding { object, place, field, severity, meaning });
    }

    fn refuse_foreign(&self, fields: &[(&str, Option<Location>)]) -> Result<(), ReadError> {
        for (field, at) in fields {
            if let Some(at) = at {
                return Err(self.refuse(*at, field, Problem::ForeignField(self.id.kind)));
            }
        }
        Ok(())
    }
}
