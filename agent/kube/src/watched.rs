//! Makes an object that we read ourselves usable for the client library.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Resource, api::ApiResource, core::DynamicResourceScope};
use serde::{Deserialize, Deserializer};
use sluice_cluster::object::{Meta, Object};

/// An object of which only the fields that matter were read.
#[derive(Clone, Debug)]
pub(crate) struct Watched<T> {
    /// What the library needs to follow the object.
    meta: ObjectMeta,
    pub(crate) object: T,
}

impl<'de, T: Object + Deserialize<'de>> Deserialize<'de> for Watched<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(deserializer).map(Self::of)
    }
}

// === impl Watched ===

impl<T: Object> Watched<T> {
    pub(crate) fn of(object: T) -> Self {
        let Meta { name, namespace, resource_version, .. } = object.meta();
        let meta = ObjectMeta {
            name: Some(name.clone()),
            namespace: (!namespace.is_empty()).then(|| namespace.clone()),
            resource_version: Some(resource_version.clone()),
            ..ObjectMeta::default()
        };
        Self { meta, object }
    }
}

impl<T> Resource for Watched<T> {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(resource: &ApiResource) -> Cow<'_, str> {
        resource.kind.as_str().into()
    }

    fn group(resource: &ApiResource) -> Cow<'_, str> {
        resource.group.as_str().into()
    }

    fn version(resource: &ApiResource) -> Cow<'_, str> {
        resource.version.as_str().into()
    }

    fn plural(resource: &ApiResource) -> Cow<'_, str> {
        resource.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}
