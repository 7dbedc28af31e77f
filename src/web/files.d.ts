/** Files that the bundler serves as they are; their import is the address. */
declare module "*.iife.min.js" {
  const url: string
  export { url as default }
}

declare module "*.woff2" {
  const url: string
  export { url as default }
}
